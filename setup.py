from pathlib import Path

from setuptools import find_packages, setup

IMAGES = ["pillow>=10"]

# matplotlib: the examples, which the tests run, draw a picture
TEST = [
    *IMAGES,
    "h5py>=3.10",
    "hypothesis>=6.100",
    "matplotlib>=3.8",
    "pandas>=2.2.1",
    "pypdf>=4",
    "pytest>=8",
    "pytest-timeout>=2.3.1",
    "pytest-xdist>=3.6",
]

setup(
    name="morphnas",
    version="0.1.0",
    description="Neural architecture search by network morphism and Bayesian optimisation, for PyTorch",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="morphnas contributors",
    license="MIT",
    packages=find_packages(include=["morphnas", "morphnas.*"]),
    package_data={"morphnas": ["py.typed", "report/page.*"]},
    entry_points={"console_scripts": ["morphnas = morphnas.cli:main"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.8",
        "numpy>=1.26",
        "scipy>=1.11.1",
        "scikit-learn>=1.6",
        "cloudpickle>=3",
        "filelock>=3.12",
        "graphviz>=0.20",
        "tqdm>=4.64",
        "safetensors>=0.5",
    ],
    extras_require={
        "images": IMAGES,
        "pdf": ["pygraphviz>=2"],
        "ray": ["ray[client]>=2.40"],
        "browser": ["selenium>=4.20"],  # what tests open the page of a run with, in a Chromium
        "onnx": ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"],
        "notebook": ["ipykernel>=6", "nbclient>=0.10"],  # what a test runs one with
        "test": TEST,
        "dev": [*TEST, "mypy>=1.15", "pdoc>=15", "ruff>=0.12"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
