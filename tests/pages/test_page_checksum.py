"""CRC32C of pages: equal to the crc32c package, by the processor's instruction and without it."""

import array
import random

import crc32c as reference
import pytest

from xtree.persistence.pages.page_checksum import KERNEL, crc32c, page_crc

# Around the boundaries of the kernels: words, three short streams (384 bytes), three long ones (4032).
LENGTHS = [*range(40), 383, 384, 385, 391, 392, 767, 768, 4031, 4032, 4033, 4096, 4424, 8063, 8064, 65536, 262144]


@pytest.fixture
def rng():
    seed = random.randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_equals_the_crc32c_package_at_every_alignment(length, portable, rng):
    data = memoryview(rng.randbytes(length + 8))
    for start in range(8):
        part = data[start : start + length]
        assert crc32c(part, portable=portable) == reference.crc32c(part)


@pytest.mark.parametrize("portable", [False, True])
def test_it_equals_the_crc32c_package_on_random_lengths(portable, rng):
    for _ in range(300):
        data = rng.randbytes(rng.randrange(20000))
        value = rng.getrandbits(32)
        assert crc32c(data, value, portable=portable) == reference.crc32c(data, value)


def test_it_can_be_continued_from_any_point(rng):
    data = rng.randbytes(9000)
    for _ in range(50):
        cut = rng.randrange(len(data))
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_it_knows_the_published_check_value():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("size_class", range(7))
def test_a_pages_crc_takes_the_crc_field_as_zero(size_class, rng):
    page = bytearray(rng.randbytes(4096 << size_class))
    expected = reference.crc32c(page[:4] + bytes(4) + page[8:])
    assert page_crc(page) == expected
    page[4:8] = rng.randbytes(4)
    assert page_crc(page) == expected
    page[rng.choice([*range(4), *range(8, len(page))])] ^= 1
    assert page_crc(page) != expected


def test_any_contiguous_buffer_is_taken():
    numbers = array.array("d", [1.0, 2.0])
    assert crc32c(numbers) == reference.crc32c(numbers.tobytes())
    assert crc32c(memoryview(b"abcd")) == crc32c(b"abcd")


def test_what_is_no_buffer_or_too_short_for_a_page_is_refused():
    with pytest.raises(TypeError):
        crc32c("text")
    with pytest.raises(BufferError):
        crc32c(memoryview(b"abcdef")[::2])
    with pytest.raises(ValueError, match="at least 8 bytes"):
        page_crc(b"short")


def test_the_kernel_has_a_name():
    assert KERNEL in {"instruction", "slicing-by-8"}
