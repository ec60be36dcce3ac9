/* CRC32C (Castagnoli): the kernel for pages, one call per page, no allocation, no lock.
 *
 * Where the processor has the instruction, three independent streams hide its latency; the streams' sums are
 * joined by tables that advance a CRC over a fixed number of zero bytes. LONG is chosen so that three streams
 * and little more make up the smallest page. Elsewhere the kernel slices by 8.
 *
 * crc32c_setup() picks the kernel, once, at import: asking the processor costs microseconds in a virtual machine.
 */
#ifndef XTREE_CRC32C_H
#define XTREE_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#define CRC32C_X86 1
#include <nmmintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(_MSC_VER)
#define CRC32C_TARGET
#elif defined(__clang__)
#define CRC32C_TARGET __attribute__((target("sse4.2,crc32")))
#else
#define CRC32C_TARGET __attribute__((target("sse4.2")))
#endif
#define CRC32C_STEP8(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define CRC32C_STEP1(crc, byte) _mm_crc32_u8((crc), (byte))
#elif defined(__aarch64__) && (defined(__ARM_FEATURE_CRC32) || defined(__linux__))
#define CRC32C_ARM 1
#if defined(__linux__)
#include <sys/auxv.h>
#define CRC32C_HWCAP (1ul << 7) /* HWCAP_CRC32 */
#endif
#define CRC32C_TARGET
/* Assembler rather than intrinsics: those want the feature switched on for the whole file. */
static inline uint32_t crc32c_step8(uint32_t crc, uint64_t word) {
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}
static inline uint32_t crc32c_step1(uint32_t crc, unsigned char byte) {
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)byte));
    return crc;
}
#define CRC32C_STEP8(crc, word) crc32c_step8((crc), (word))
#define CRC32C_STEP1(crc, byte) crc32c_step1((crc), (byte))
#endif

#define CRC32C_POLYNOMIAL 0x82F63B78u /* reflected */
#define CRC32C_LONG 1344              /* bytes of one of three streams: 4096 = 8 + 3 * 1344 + 56 */
#define CRC32C_SHORT 128

typedef uint32_t (*crc32c_function)(uint32_t crc, const unsigned char *data, size_t n);

static uint32_t crc32c_slices[8][256];
static uint32_t crc32c_long_shift[4][256];
static uint32_t crc32c_short_shift[4][256];
static crc32c_function crc32c_kernel;
static const char *crc32c_kernel_name;

static inline uint64_t crc32c_load8(const unsigned char *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

/* The kernels work on the raw register; crc32c_update takes the complements at both ends. */
static uint32_t crc32c_sliced(uint32_t crc, const unsigned char *data, size_t n) {
    for (; n >= 8; data += 8, n -= 8) {
        uint64_t word = crc32c_load8(data) ^ crc;
        crc = crc32c_slices[7][word & 0xFF] ^ crc32c_slices[6][(word >> 8) & 0xFF] ^
              crc32c_slices[5][(word >> 16) & 0xFF] ^ crc32c_slices[4][(word >> 24) & 0xFF] ^
              crc32c_slices[3][(word >> 32) & 0xFF] ^ crc32c_slices[2][(word >> 40) & 0xFF] ^
              crc32c_slices[1][(word >> 48) & 0xFF] ^ crc32c_slices[0][word >> 56];
    }
    for (; n; data++, n--)
        crc = crc32c_slices[0][(crc ^ *data) & 0xFF] ^ (crc >> 8);
    return crc;
}

#if defined(CRC32C_X86) || defined(CRC32C_ARM)
static inline uint32_t crc32c_shift(uint32_t table[4][256], uint32_t crc) {
    return table[0][crc & 0xFF] ^ table[1][(crc >> 8) & 0xFF] ^ table[2][(crc >> 16) & 0xFF] ^ table[3][crc >> 24];
}

CRC32C_TARGET static uint32_t crc32c_instruction(uint32_t crc, const unsigned char *data, size_t n) {
    static const size_t stream_bytes[2] = {CRC32C_LONG, CRC32C_SHORT};
    for (int size = 0; size < 2; size++) {
        size_t bytes = stream_bytes[size];
        uint32_t(*shift)[256] = size ? crc32c_short_shift : crc32c_long_shift;
        for (; n >= 3 * bytes; data += 3 * bytes, n -= 3 * bytes) {
            uint32_t second = 0, third = 0;
            for (size_t i = 0; i < bytes; i += 8) {
                crc = CRC32C_STEP8(crc, crc32c_load8(data + i));
                second = CRC32C_STEP8(second, crc32c_load8(data + bytes + i));
                third = CRC32C_STEP8(third, crc32c_load8(data + 2 * bytes + i));
            }
            crc = crc32c_shift(shift, crc32c_shift(shift, crc) ^ second) ^ third;
        }
    }
    for (; n >= 8; data += 8, n -= 8)
        crc = CRC32C_STEP8(crc, crc32c_load8(data));
    for (; n; data++, n--)
        crc = CRC32C_STEP1(crc, *data);
    return crc;
}

static int crc32c_has_instruction(void) {
#if defined(CRC32C_X86) && defined(_MSC_VER)
    int registers[4];
    __cpuid(registers, 1);
    return (registers[2] >> 20) & 1;
#elif defined(CRC32C_X86)
    unsigned int a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 20) & 1;
#elif defined(CRC32C_ARM) && defined(__linux__)
    return (getauxval(AT_HWCAP) & CRC32C_HWCAP) != 0;
#elif defined(CRC32C_ARM)
    return 1;
#endif
}

/* Whether the instruction computes what the portable kernel does, over both sizes of stream and the rest. */
static int crc32c_instruction_is_right(void) {
    unsigned char data[3 * (CRC32C_LONG + CRC32C_SHORT) + 15];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (unsigned char)(i * i + 7 * i);
    return crc32c_instruction(1, data, sizeof(data)) == crc32c_sliced(1, data, sizeof(data));
}
#endif

/* A CRC register advanced over `bytes` zero bytes is linear in its bits: one run for each bit fills the table. */
static void crc32c_fill_shift(uint32_t table[4][256], size_t bytes) {
    static const unsigned char zeros[CRC32C_LONG];
    for (int position = 0; position < 4; position++)
        for (int value = 1; value < 256; value++) {
            int lowest = value & -value;
            table[position][value] = value == lowest
                ? crc32c_sliced((uint32_t)value << (8 * position), zeros, bytes)
                : table[position][value ^ lowest] ^ table[position][lowest];
        }
}

static void crc32c_setup(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? CRC32C_POLYNOMIAL : 0);
        crc32c_slices[0][byte] = crc;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = crc32c_slices[slice - 1][byte];
            crc32c_slices[slice][byte] = crc32c_slices[0][crc & 0xFF] ^ (crc >> 8);
        }
    crc32c_fill_shift(crc32c_long_shift, CRC32C_LONG);
    crc32c_fill_shift(crc32c_short_shift, CRC32C_SHORT);
    crc32c_kernel = crc32c_sliced;
    crc32c_kernel_name = "slicing-by-8";
#if defined(CRC32C_X86) || defined(CRC32C_ARM)
    if (crc32c_has_instruction() && crc32c_instruction_is_right()) {
        crc32c_kernel = crc32c_instruction;
        crc32c_kernel_name = "instruction";
    }
#endif
}

static inline uint32_t crc32c_update(uint32_t crc, const void *data, size_t n) {
    return ~crc32c_kernel(~crc, (const unsigned char *)data, n);
}

static inline uint32_t crc32c_update_sliced(uint32_t crc, const void *data, size_t n) {
    return ~crc32c_sliced(~crc, (const unsigned char *)data, n);
}

#endif
