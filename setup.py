"""Builds the Cython modules. Everything else about the package is in pyproject.toml.

`XTREE_DEBUG=1` makes the checked build: bounds checks, wraparound checks and C assertions. `XTREE_SANITIZE=address`
adds the compiler's checks of every access to memory and of undefined behaviour, for a process that is started with the
compiler's libasan preloaded (make asan). Either has a build directory of its own.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("XTREE_SANITIZE", "")
if SANITIZE not in ("", "address"):
    raise SystemExit(f"XTREE_SANITIZE must be address or empty, not {SANITIZE!r}")
DEBUG = bool(SANITIZE) or os.environ.get("XTREE_DEBUG", "") not in ("", "0")
BUILD = SANITIZE or ("checked" if DEBUG else "")

MODULES = [
    "xtree.persistence.memory",
    "xtree.persistence.node_id",
    "xtree.persistence.page_checksum",
    "xtree.persistence.mmap_windows",
    "xtree.persistence.segment_allocator",
    "xtree.persistence.file_places",
    "xtree.persistence.object_table",
    "xtree.persistence.mvcc",
    "xtree.persistence.recycler",
    "xtree.persistence.store",
    "xtree.persistence.write_set",
    "xtree.persistence.memory_store",
    "xtree.persistence.commit_queue",
    "xtree.persistence.delta",
    "xtree.persistence.frame_run",
    "xtree.persistence.replay",
    "xtree.persistence.page_copy",
    "xtree.persistence.probes",
    "xtree.box",
    "xtree.bucket",
    "xtree.tree_state",
    "xtree.key_sort",
    "xtree.split",
    "xtree.subtree_choice",
    "xtree.insertion",
    "xtree.removal",
    "xtree.kernels",
    "xtree.arrays",
    "xtree.query_order",
    "xtree.search",
    "xtree.nearest",
    "xtree.join",
    "xtree.bulk",
    "xtree.inspection",
    "xtree.conversion",
    "xtree.write_scope",
    "xtree.view",
]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
    "freethreading_compatible": False,
}

if sys.platform == "win32":
    COMPILE = ["/O2", "/fp:precise", "/std:c11"] if not DEBUG else ["/Od", "/std:c11"]
else:
    COMPILE = ["-std=gnu11", "-ffp-contract=off", "-Wno-unused-function", "-Wno-unreachable-code"]
    COMPILE += ["-O1", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0", "-fno-math-errno"]
LINK = []
if SANITIZE:
    LINK = ["-fsanitize=address,undefined"]
    COMPILE += [*LINK, "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]

extensions = [
    Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=["xtree", "xtree/persistence"],
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
        define_macros=[("XTREE_DEBUG", "1")] if DEBUG else [],
    )
    for name in MODULES
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives=DIRECTIVES,
        build_dir=f"build/{BUILD or 'cython'}",
        nthreads=os.cpu_count() or 1 if sys.platform == "linux" else 0,    # where workers fork
        show_all_warnings=False,
    ),
    options={
        "build": {"build_base": f"build/{BUILD or 'release'}"},
        "build_ext": {"parallel": os.cpu_count() or 1},
    },
)
