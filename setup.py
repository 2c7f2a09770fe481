"""Compile the core; every other fact about the package lives in pyproject.toml."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

# -g0 takes an extension from 1.2 MB to 0.3 MB.
FLAGS = ["/O2"] if sys.platform == "win32" else ["-O3", "-g0"]
CXX_FLAGS = ["/std:c++17"] if sys.platform == "win32" else ["-std=c++17"]

EXTENSIONS = [
    Extension("pgtick._fast.symbols", ["src/_fast/symbols.pyx"], extra_compile_args=FLAGS),
    # C++ for std::to_chars, the shortest text of a double.
    Extension(
        "pgtick._fast.encode",
        ["src/_fast/encode.pyx"],
        language="c++",
        extra_compile_args=FLAGS + CXX_FLAGS,
    ),
    # C++ for std::from_chars, and for memory shared with consumers of Arrow.
    *(
        Extension(
            f"pgtick._fast.{name}",
            [f"src/_fast/{name}.pyx"],
            language="c++",
            extra_compile_args=FLAGS + CXX_FLAGS,
        )
        for name in ("arrow_out", "columns", "decode", "fields", "numeric_out", "objects")
    ),
]

setup(
    ext_modules=cythonize(
        EXTENSIONS,
        include_path=["src"],
        # A changed directive does not change a timestamp.
        force=True,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "auto_pickle": False,
            "autotestdict": False,
            "embedsignature": False,
        },
    ),
)
