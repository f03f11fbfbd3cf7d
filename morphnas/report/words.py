"""Values as short texts: counts, durations, morphs, results. Pure functions, plain ASCII for any log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from morphnas.graph import Morph
from morphnas.search.trial import Trial
from morphnas.train.recipe import Outcome

FINAL_WORDS = {
    "inherited": "final: trained longer",
    "inherited, unmoved": "final: trained longer, without shifts",
    "inherited, changed more": "final: trained longer, with stronger augmentation",
    "fresh": "final: from fresh weights",
    "fresh, unmoved": "final: from fresh weights, without shifts",
    "fresh, changed more": "final: from fresh weights, with stronger augmentation",
    "everything": "final: on all examples",
}
"""Descriptions of the final trainings, by their names in `morphnas.run.final`."""

MAX_ERROR_LINE = 160
"""Maximum number of characters of an error that is shown in one line."""
_UNITS = ("", "k", "M", "G", "T")


def count(value: int) -> str:
    """A number to three significant digits.

    >>> count(987), count(12_345), count(999_999), count(1_200_000), count(43_210_000_000)
    ('987', '12.3k', '1.00M', '1.20M', '43.2G')
    """
    size, power = (float(part) for part in f"{value:.2e}".split("e"))
    thousands = min(int(power) // 3, len(_UNITS) - 1)
    if not thousands:
        return str(value)
    shift = int(power) - 3 * thousands
    return f"{size * 10**shift:.{max(0, 2 - shift)}f}{_UNITS[thousands]}"


def duration(seconds: float) -> str:
    """A time to the second, below ten seconds to a tenth.

    >>> duration(3.21), duration(59.6), duration(3725)
    ('3.2 s', '1:00', '1:02:05')
    """
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def morph_words(morph: Morph) -> str:
    """What a morph does, and where.

    >>> from morphnas.graph import AddSkip, Wider, WiderAll
    >>> morph_words(Wider("conv_4", 64)), morph_words(AddSkip("relu_3", "relu_9")), morph_words(WiderAll(200))
    ('wider conv_4, width 64', 'add skip relu_3 to relu_9', 'wider all, percent 200')
    """
    values = {name: value for name, value in morph.to_json().items() if name != "morph"}
    sites = " to ".join(value for value in values.values() if isinstance(value, str))
    sizes = [f"{name} {value}" for name, value in values.items() if not isinstance(value, str)]
    return ", ".join([f"{morph.tag.replace('_', ' ')} {sites}".rstrip(), *sizes])


def trial_words(trial: Trial) -> str:
    """What a trial tries: morphs, longer training of its parent, a network from fresh weights, or a final training; and
    the settings of its recipe, if these are searched."""
    return "; ".join([_network_words(trial), *([settings] if (settings := searched_words(trial)) else [])])


def searched_words(trial: Trial) -> str:
    """Searched settings of the trial's recipe, such as "lr 0.1, dropout 0.25"; "" if none are searched."""
    settings = trial.proposal.why.get("recipe")
    if not isinstance(settings, Mapping):
        return ""
    return ", ".join(f"{name.replace('_', ' ')} {value!s:.100}" for name, value in settings.items())


def _network_words(trial: Trial) -> str:
    if trial.proposal.morphs:
        return "; ".join(map(morph_words, trial.proposal.morphs))
    if final := trial.proposal.why.get("final"):
        return FINAL_WORDS.get(str(final), f"final: {final}")
    if trial.parent is not None and trial.proposal.why.get("reason") == "rates":
        return "all layers, fine-tuned" if trial.proposal.recipe.freeze_norms else "all layers, at the usual rates"
    if trial.parent is not None:
        return "trained longer"
    if trial.proposal.why.get("reason") == "narrower":
        return "start, narrower"
    if trial.proposal.why.get("reason") == "afresh":
        return "the best, from fresh weights"
    if trial.proposal.why.get("weights") != "given":
        return "start"
    return "start, with weights given" + (": last layer" if trial.proposal.recipe.layers == "last" else "")


def metric_words(outcome: Outcome | None, named: bool = False) -> str:
    """The metric: a percentage if it is an accuracy, else a number; "" if there is none.

    named: whether a metric other than the accuracy is preceded by its name.
    """
    if outcome is None or outcome.metric is None:
        return ""
    words = measured_words(outcome.measure, outcome.metric)
    return words if named and outcome.measure != "accuracy" else words.removeprefix(f"{outcome.measure} ")


def measured_words(measure: str, value: float) -> str:
    """A metric with its name.

    >>> measured_words("accuracy", 0.98765), measured_words("f1_macro", 0.98765), measured_words("r2", -1234567.8)
    ('accuracy 98.77 %', 'f1_macro 0.9877', 'r2 -1.235e+06')
    """
    return f"{measure} {100 * value:.2f} %" if measure == "accuracy" else f"{measure} {number_words(value)}"


def number_words(value: float) -> str:
    """A number to four decimal places, or to four significant digits if it is too small or too large for that.

    >>> number_words(0.98765), number_words(-12.3), number_words(0.0000123), number_words(0.0)
    ('0.9877', '-12.3000', '1.23e-05', '0.0000')
    """
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.4g}"


def gain_words(gain: float, measure: str) -> str:
    """A difference of two values of a metric.

    >>> gain_words(0.0123, "accuracy"), gain_words(-0.0123, "R2"), gain_words(1.2e-6, "R2")
    ('+1.23 points', '-0.0123 of R2', '+1.2e-06 of R2')
    """
    if measure == "accuracy":
        return f"{100 * gain:+.2f} points"
    return f"{'-' if gain < 0 else '+'}{number_words(abs(gain))} of {measure}"


def interval_words(outcome: Outcome | None) -> str:
    """The metric's 95 % confidence interval in percent, e.g. "97.1-99.0"; "" if there is none."""
    if outcome is None or outcome.interval is None:
        return ""
    low, high = outcome.interval
    return f"{100 * low:.1f}-{100 * high:.1f}"


def epochs_words(epochs: int) -> str:
    return f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"


def status_words(trial: Trial) -> str:
    """How a trial ended, whether it was trained again at a lower learning rate because it diverged, and whether its
    latency is above the limit."""
    if trial.outcome is None:
        return "running"
    retried, slow = ", tried again" if trial.outcome.retries else "", ", too slow" if trial.slow else ""
    return trial.outcome.status + retried + slow


def error_words(outcome: Outcome | None) -> str:
    """The error in one line: the last line of a traceback, else the first line; "" if there is no error."""
    lines = (outcome.error or "").strip().splitlines() if outcome is not None else []
    line = lines[-1 if any(line.startswith('  File "') for line in lines) else 0].strip() if lines else ""
    return line if len(line) <= MAX_ERROR_LINE else line[: MAX_ERROR_LINE - 3] + "..."


def ends_words(trials: Sequence[Trial]) -> str:
    """The numbers of trials by status, largest first: "5 finished, 1 out of memory"; "" if there are none."""
    counts = Counter("running" if trial.outcome is None else trial.outcome.status for trial in trials)
    words = {"truncated": "cut short", "oom": "out of memory"}
    return ", ".join(
        f"{n} {words.get(status, status)}" for status, n in sorted(counts.items(), key=lambda item: -item[1])
    )
