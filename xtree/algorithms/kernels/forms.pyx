"""Chooses the kernels at import: the best form the processor has, or the one that XTREE_SIMD names."""

import os

cdef extern from "distance_kernels.h" nogil:
    const bint X86 "XT_X86"
    const bint HAS_AVX2 "xt_has_avx2()"
    const bint HAS_AVX512 "xt_has_avx512()"
    Select select_portable "xt_select_portable", select_avx2 "xt_select_avx2", select_avx512 "xt_select_avx512"
    Divide divide_portable "xt_divide_portable", divide_avx2 "xt_divide_avx2", divide_avx512 "xt_divide_avx512"
    Span span_portable "xt_span_portable", span_avx2 "xt_span_avx2", span_avx512 "xt_span_avx512"
    Distances distances_portable "xt_distances_portable", distances_avx2 "xt_distances_avx2"
    Distances distances_avx512 "xt_distances_avx512"


def available() -> tuple[str, ...]:
    """The forms this processor can run, best first."""
    return ("avx512",) * HAS_AVX512 + ("avx2",) * HAS_AVX2 + ("portable",)


cdef str _choose():
    """The form to run: XTREE_SIMD's, or the best one. Raises ImportError for a form that can't run here."""
    cdef str form = os.environ.get("XTREE_SIMD", "")
    if not form:
        return available()[0]
    if form not in available():
        raise ImportError(f"XTREE_SIMD={form}: this processor runs {', '.join(available())}")
    return form


cdef Form form_of(str name) except *:
    cdef Form form
    if name not in available():
        raise ValueError(f"{name!r}: this processor runs {', '.join(available())}")
    if name == "avx512":
        form.select, form.divide, form.span = select_avx512, divide_avx512, span_avx512
        form.distances = distances_avx512
    elif name == "avx2":
        form.select, form.divide, form.span = select_avx2, divide_avx2, span_avx2
        form.distances = distances_avx2
    else:
        form.select, form.divide, form.span = select_portable, divide_portable, span_portable
        form.distances = distances_portable
    return form


simd = _choose()

cdef Form _chosen = form_of(simd)
select, divide, span, distances = _chosen.select, _chosen.divide, _chosen.span, _chosen.distances
