"""The layers of the source: a file imports from its own layer or lower ones, and persistence knows nothing of trees."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PERSISTENCE = "xtree.persistence."

# Lowest first. docs/architecture.md explains them.
LAYERS = [
    # 0 vocabulary: ids, sizes, names, errors, memory
    {"xtree.errors", "persistence.node_id", "persistence.page", "persistence.config", "persistence.filenames",
     "persistence.crash_points", "persistence.clock", "persistence.atomics", "persistence.memory",
     "persistence.breath", "persistence.forks", "persistence.lock_ranks", "persistence.threads", "persistence"},
    # 1 the machine: files, checksums, geometry
    {"persistence.platform_fs", "persistence.open_directory", "persistence.lock_file",
     "persistence.disk_reserve", "persistence.metrics", "persistence.page_checksum",
     "xtree.box", "xtree.kernels", "xtree.kernel_forms", "xtree.radix"},
    # 2 space: which bytes of which file are mapped, used, free
    {"persistence.mmap_windows", "persistence.segment_allocator", "persistence.memory_growth"},
    # 3 names: NodeID to address, epochs, who is reading
    {"persistence.object_table", "persistence.row", "persistence.file_places", "persistence.stored_row",
     "persistence.stored_table", "persistence.mvcc", "persistence.recycler"},
    # 4 records on disk: one format each
    {"persistence.wal", "persistence.wal_reader", "persistence.checkpoint", "persistence.superblock",
     "persistence.manifest", "persistence.catalog", "persistence.data_files", "persistence.file_header",
     "persistence.frame", "persistence.open_files", "persistence.frame_layout", "persistence.frame_run"},
    # 5 order: when things happen and in which order
    {"persistence.checkpoint_coordinator", "persistence.recovery", "persistence.replay", "persistence.scan",
     "persistence.journal", "persistence.commit_queue", "persistence.checkpointer", "persistence.checkpoint_policy",
     "persistence.backpressure", "persistence.log_gc", "persistence.reclaimer", "persistence.file_check"},
    # 6 store: the whole substrate behind a few verbs, and named roots
    {"persistence.store", "persistence.write_set", "persistence.memory_store", "persistence.durable_store",
     "persistence.delta", "persistence.runtime", "persistence.creation", "persistence.page_copy",
     "persistence.backup", "persistence.probes", "persistence.reached_pages",
     "persistence.session", "persistence.sharing", "persistence.fork_hooks"},
    # 7 tree: X-tree pages and algorithms
    {"xtree.tree_state", "xtree.bucket", "xtree.split", "xtree.insertion", "xtree.removal", "xtree.search",
     "xtree.walk", "xtree.leaf_group", "xtree.nearest", "xtree.accesses", "xtree.bulk", "xtree.inspection",
     "xtree.arrays", "xtree.query_order",
     "xtree.subtree_choice", "xtree.key_sort", "xtree.join", "xtree.parallel"},
    # 8 face: what people touch
    {"xtree", "xtree.arguments", "xtree.conversion", "xtree.real_numbers", "xtree.inputs",
     "xtree.frames", "xtree.columns", "xtree.column_names", "xtree.geometries", "xtree.libraries",
     "xtree.tree", "xtree.reading", "xtree.writing",
     "xtree.transaction", "xtree.write_scope", "xtree.view", "xtree.snapshot", "xtree.runtime", "xtree.forest",
     "xtree.roots", "xtree.epoch_check", "xtree.pickling",
     "xtree.structure", "xtree.prometheus", "xtree.display", "xtree.cli",
     "xtree.cli_bench",
     "xtree.cli_errors", "xtree.data",
     "xtree.demo", "xtree.demo_writer", "xtree.map_svg", "xtree.map_labels",
     "xtree.tools", "xtree.tools.backup", "xtree.tools.bench", "xtree.tools.bench_checkpoints",
     "xtree.tools.bench_groups", "xtree.tools.bench_layout",
     "xtree.tools.bench_child", "xtree.tools.bench_commits", "xtree.tools.bench_memory", "xtree.tools.bench_peers",
     "xtree.tools.bench_answers", "xtree.tools.bench_build", "xtree.tools.bench_contest", "xtree.tools.bench_data",
     "xtree.tools.bench_index", "xtree.tools.bench_peak", "xtree.tools.bench_queries", "xtree.tools.bench_tree_peers",
     "xtree.tools.bench_trees", "xtree.tools.bench_writes",
     "xtree.tools.bench_recovery", "xtree.tools.bench_report", "xtree.tools.bench_size", "xtree.tools.build",
     "xtree.tools.check", "xtree.tools.describe", "xtree.tools.dump", "xtree.tools.dump_pages",
     "xtree.tools.dump_text", "xtree.tools.dump_wal", "xtree.tools.fsck", "xtree.tools.fsck_files",
     "xtree.tools.fsck_judge", "xtree.tools.fsck_open", "xtree.tools.fsck_pages", "xtree.tools.fsck_repair",
     "xtree.tools.fsck_report", "xtree.tools.fsck_text", "xtree.tools.salvage", "xtree.tools.soak",
     "xtree.tools.soak_model",
     "xtree.tools.soak_work", "xtree.tools.tables", "xtree.tools.table_error", "xtree.tools.csv_columns",
     "xtree.tools.csv_file", "xtree.tools.csv_text"},
]
LAYER_OF = {
    (name if name.startswith("xtree") else "xtree." + name): number
    for number, names in enumerate(LAYERS)
    for name in names
}


def module_of(path: Path) -> str:
    """The dotted name a source file is imported by; tools/ is installed as xtree.tools."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "tools":
        parts.insert(0, "xtree")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(
    path
    for folder in ("xtree", "tools")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".pyx", ".pxd"}
)
MODULES = {module_of(path) for path in SOURCES}


def python_imports(text: str) -> set[str]:
    """Every module that Python source imports, also inside functions; `from a import b` counts as a and a.b.

    What only a type checker imports doesn't count.
    """
    found = set()
    pending: list[ast.AST] = [ast.parse(text)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def cython_imports(text: str) -> set[str]:
    """The same for Cython source, import and cimport."""
    code = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    code = re.sub(r"#.*", "", code)
    code = re.sub(r"\(\s*([^()]*?)\s*\)", lambda match: " " + " ".join(match.group(1).split()), code)
    found = set()
    for line in code.split("\n"):
        if match := re.match(r"\s*from\s+(\S+)\s+c?import\s+(.+)", line):
            found |= {match.group(1)} | {f"{match.group(1)}.{name}" for name in first_words(match.group(2))}
        elif match := re.match(r"\s*c?import\s+(.+)", line):
            found |= first_words(match.group(1))
    return found


def first_words(names: str) -> set[str]:
    """The names in `a, b as c`."""
    return {name.split()[0] for name in names.split(",") if name.strip()}


def ours(path: Path) -> set[str]:
    """The modules of this project that a file imports, without itself."""
    text = path.read_text(encoding="utf-8")
    found = python_imports(text) if path.suffix == ".py" else cython_imports(text)
    modules = {name for name in found if name in MODULES}
    # `from xtree import errors` names the package on the way to a module: only the module counts.
    packages = {name for name in modules if any(other.startswith(name + ".") for other in modules)}
    return modules - packages - {module_of(path)}


def test_every_module_has_a_layer_and_every_layer_only_modules_that_exist():
    assert set(LAYER_OF) == MODULES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_layer_or_lower_ones(path):
    layer = LAYER_OF[module_of(path)]
    above = {name: LAYER_OF[name] for name in ours(path) if LAYER_OF[name] > layer}
    assert not above, f"{module_of(path)} is in layer {layer} and imports from above: {above}"


def test_persistence_never_imports_the_tree():
    for path in SOURCES:
        if module_of(path).startswith(PERSISTENCE):
            tree = {name for name in ours(path) if not name.startswith("xtree.persistence") and name != "xtree.errors"}
            assert not tree, f"{path.relative_to(ROOT)} imports {tree}"


def test_the_import_parsers_see_what_they_should():
    python = "import xtree.box\ndef f():\n    from xtree import errors, tree as t\n"
    assert {"xtree.box", "xtree.errors", "xtree.tree"} <= python_imports(python)
    cython = '"""from xtree import no"""\nfrom xtree.box cimport (a,\n    b)\n'
    cython += "    cimport xtree.split as s  # import xtree.not\n"
    assert {"xtree.box", "xtree.box.b", "xtree.split"} <= cython_imports(cython)
    assert not {"xtree.no", "xtree.not"} & cython_imports(cython)
