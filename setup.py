"""Builds the Cython modules. Everything else about the package is in pyproject.toml.

`XTREE_DEBUG=1` makes the checked build: bounds checks, wraparound checks and C assertions. `XTREE_SANITIZE` makes one
that the compiler's sanitizers watch, for a process that is started with their library preloaded: `address` looks at
every access to memory and at undefined behaviour (make asan), `thread` at what threads share (make tsan). Each has a
build directory of its own. An optimisation that `CFLAGS` names is not overridden.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZERS = {  # value of XTREE_SANITIZE -> flags of compiler and linker
    "": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
    "thread": ["-fsanitize=thread", "-fno-omit-frame-pointer"],
}
SANITIZE = os.environ.get("XTREE_SANITIZE", "")
if SANITIZE not in SANITIZERS:
    raise SystemExit(f"XTREE_SANITIZE must be {' or '.join(filter(None, SANITIZERS))}, not {SANITIZE!r}")
DEBUG = SANITIZE == "address" or os.environ.get("XTREE_DEBUG", "") not in ("", "0")
BUILD = SANITIZE or ("checked" if DEBUG else "")

MODULES = [
    "xtree.persistence.memory",
    "xtree.persistence.breath",
    "xtree.persistence.lock_ranks",
    "xtree.persistence.metrics",
    "xtree.persistence.node_id",
    "xtree.persistence.page_checksum",
    "xtree.persistence.mmap_windows",
    "xtree.persistence.segment_allocator",
    "xtree.persistence.file_places",
    "xtree.persistence.object_table",
    "xtree.persistence.stored_table",
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
    "xtree.persistence.reached_pages",
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
    "xtree.kernel_forms",
    "xtree.arrays",
    "xtree.parallel",
    "xtree.query_order",
    "xtree.walk",
    "xtree.leaf_group",
    "xtree.search",
    "xtree.nearest",
    "xtree.accesses",
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
    OPTIMIZE = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O3"]
    COMPILE += ["-O1", "-g", "-UNDEBUG"] if DEBUG or SANITIZE else [*OPTIMIZE, "-g0", "-fno-math-errno"]
    COMPILE += SANITIZERS[SANITIZE]

extensions = [
    Extension(
        name,
        [name.replace(".", "/") + ".pyx"],
        include_dirs=["xtree", "xtree/persistence"],
        extra_compile_args=COMPILE,
        extra_link_args=SANITIZERS[SANITIZE],
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
