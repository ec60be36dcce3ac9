"""A log frame's header and deltas as C structs, for the writer and the readers: docs/format.md, frame.py."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:                          # as stored. Never renumber.
    FRAME_MAGIC = 0x52465458        # "XTFR" as little-endian bytes
    FRAME_FORMAT = 2
    LAST_MODE = 3
    MODE_STRICT = 1
    OP_BIRTH = 1
    OP_RETIRE = 2
    OP_RELOCATE = 3
    PAYLOAD_NONE = 0
    PAYLOAD_WHOLE = 1
    PAYLOAD_RANGES = 2
    FRAME_ALIGNMENT = 8
    SECTOR_BYTES = 4096
    WORD_BYTES = 8                  # the unit in which ranges are counted
    FIRST_WORD = 2                  # the first that a range may hold: magic, CRC and NodeID follow from the delta


cdef struct FrameHeader:
    uint32_t magic
    uint32_t crc
    uint64_t length
    uint8_t uuid[16]
    uint64_t offset
    uint32_t previous_crc
    uint8_t kind
    uint8_t mode
    uint16_t format
    uint64_t first_epoch
    uint64_t last_epoch
    uint64_t durable_through
    uint32_t delta_count
    uint32_t catalog_count
    uint64_t catalog_bytes
    uint64_t payload_bytes
    uint64_t log_number
    uint64_t time_ns
    uint64_t reserved[2]


cdef struct Delta:
    uint64_t node_id
    uint64_t epoch
    uint8_t op
    uint8_t kind
    uint8_t size_class
    uint8_t payload_form
    uint32_t file_number
    uint64_t offset
    uint32_t page_crc
    uint32_t page_bytes
    uint64_t payload_offset
    uint32_t payload_bytes
    uint32_t base_crc
    uint64_t replaces


cdef struct Range:
    uint16_t first_word
    uint16_t word_count


cdef inline uint64_t aligned(uint64_t n, uint64_t alignment) noexcept nogil:
    """The least multiple of a power of two that isn't below n."""
    return (n + alignment - 1) & ~(alignment - 1)
