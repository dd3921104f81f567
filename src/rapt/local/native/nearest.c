/* The int8 screen of the nearest-token search: which tokens can be the nearest, by bounds that hold whatever is rounded.
 *
 * For a vector v and a row w, quantized to v' = t*q and w' = s*p with integers |q|, |p| <= 127,
 *
 *     |v.w - v'.w'| <= ||v|| ||w - w'|| + ||v - v'|| ||w'||                                  (Cauchy-Schwarz, twice)
 *
 * and v'.w' = t*s*(q.p), where q.p is an integer that is computed exactly. So each row has an upper and a lower bound of
 * its score v.w - ||w||^2/2, and the nearest row is among those whose upper bound reaches the best lower bound. Those
 * are few; their scores are computed again in double precision, and what is still open goes to the caller.
 *
 * The scores are never written: a tile of 6 vectors and 64 rows lives in 24 registers, and only rows that pass the bound
 * leave it. vpdpbusd multiplies an unsigned by a signed byte, adds four products and does not saturate: the rows are
 * stored as p + 128, and 128 * sum(q) is taken off at the start. (vpmaddubsw, its predecessor, saturates: not used.)
 *
 * Where the processor has AMX and the system lets a process use it, tdpbsud multiplies a tile of 16 vectors by one of 16
 * rows, 64 numbers of each: eight times as many products a cycle, of the same bytes to the same integers. Its sums pass
 * through the first-level cache, 32 vectors and 64 rows at a time.
 *
 * Plain C and intrinsics; no allocation, no state, no Python. Called by ctypes from ../nearest_kernel.py.
 */

#define _GNU_SOURCE /* syscall */
#include <math.h>
#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_KERNEL 1
#include <immintrin.h>
#else
#define HAS_KERNEL 0
#endif

/* The tiles are Linux's to give, and older compilers do not know them. */
#if HAS_KERNEL && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define HAS_TILES 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_TILES 0
#endif

#define EXPORT __attribute__((visibility("default")))

/* Vectors a tile, rows a block, vectors of 16 numbers a block. */
#define TILE 6
#define BLOCK 64
#define LANES 16
#define PARTS (BLOCK / LANES)
/* The same for AMX: vectors of two tiles, and groups of four numbers that one tile has of each. */
#define WIDE 32
#define DEEP 16

/* Changed with every change of what a function takes: the caller refuses another one. */
EXPORT int rapt_nearest_version(void) { return 1; }

#if !HAS_TILES

EXPORT int rapt_nearest_has_tiles(void) { return 0; }

#endif

#if !HAS_KERNEL

EXPORT int rapt_nearest_runs_here(void) { return 0; }

#else

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))

EXPORT int rapt_nearest_runs_here(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

/* q.p of one tile and one block, (TILE, BLOCK). queries: (groups, TILE) words of 4 signed bytes. rows: (groups, BLOCK)
 * words of 4 unsigned bytes. starts: -128 * sum(q) of each vector. Of 32 registers 24 hold sums, 4 rows, 1 a query. */
VNNI static void multiply(int32_t out[TILE * BLOCK], const int32_t *queries, const uint8_t *rows,
                          const int32_t *starts, int64_t groups) {
    __m512i sums[TILE][PARTS];
#pragma GCC unroll 6
    for (int i = 0; i < TILE; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++) sums[i][j] = _mm512_set1_epi32(starts[i]);
    }
    for (int64_t k = 0; k < groups; k++, queries += TILE, rows += BLOCK * 4) {
        __m512i row[PARTS];
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++) row[j] = _mm512_loadu_si512(rows + j * 64);
#pragma GCC unroll 6
        for (int i = 0; i < TILE; i++) {
            const __m512i query = _mm512_set1_epi32(queries[i]);
#pragma GCC unroll 4
            for (int j = 0; j < PARTS; j++) sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], row[j], query);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < TILE; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++) _mm512_storeu_si512(out + i * BLOCK + j * LANES, sums[i][j]);
    }
}

/* The integers alone, (tiles, blocks, TILE, BLOCK): what the self-test compares with a product of Python's. */
EXPORT void rapt_nearest_products(const int32_t *words, const int32_t *starts, int64_t tiles, const uint8_t *packed,
                                  int64_t blocks, int64_t groups, int32_t *out) {
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t block = 0; block < blocks; block++)
            multiply(out + (tile * blocks + block) * TILE * BLOCK, words + tile * groups * TILE,
                     packed + block * groups * BLOCK * 4, starts + tile * TILE, groups);
}

/* What is known of one vector. */
typedef struct {
    float step;     /* t: v' = t*q */
    float length;   /* >= ||v|| */
    float residual; /* >= ||v - v'|| */
    float floor;    /* the best lower bound so far */
    int32_t count;  /* of its candidates, or -1 where they were too many */
} Vector;

/* A row's numbers, one array each over blocks * BLOCK rows. Rows that fill up the last block have half = infinity. */
typedef struct {
    const float *step;     /* s: w' = s*p */
    const float *half;     /* <= ||w||^2/2, by the error of all float32 arithmetic on it below */
    const float *slack;    /* what to take off a lower bound for that */
    const float *residual; /* >= ||w - w'||, and the error of float32 arithmetic */
    const float *length;   /* >= ||w'|| */
} Rows;

/* Where a vector has its words of 4 bytes: word k at (k >> shift) * far + (k & near). */
typedef struct {
    int shift;
    int64_t near, far;
} Places;

static const Places OF_TILE = {0, 0, TILE}; /* (groups, TILE) */
#if HAS_TILES
static const Places OF_WIDE = {4, DEEP - 1, DEEP * DEEP}; /* (groups / DEEP, DEEP vectors, DEEP) */
#endif

/* Quantizes one vector. Exactly rounded or not does not matter: the residual is
 * of what was stored. */
VNNI static void quantize(const double *vector, int64_t dim, int64_t groups, Vector *known, int32_t *words,
                          int32_t *start, Places places) {
#define PLACE(k) (((k) >> places.shift) * places.far + ((k) & places.near))
    __m512d top = _mm512_setzero_pd(), squares = _mm512_setzero_pd();
    const int64_t whole = dim / 8;
    const __mmask8 rest = (__mmask8)((1u << (dim % 8)) - 1);
    for (int64_t i = 0; i <= whole; i++) {
        const __m512d x = _mm512_maskz_loadu_pd(i < whole ? 0xff : rest, vector + i * 8);
        top = _mm512_max_pd(top, _mm512_abs_pd(x));
        squares = _mm512_fmadd_pd(x, x, squares);
    }
    const double largest = _mm512_reduce_max_pd(top), length = sqrt(_mm512_reduce_add_pd(squares));
    for (int64_t k = 0; k < groups; k++) words[PLACE(k)] = 0;
    *start = 0;
    known->count = 0;
    known->floor = -INFINITY;
    known->step = 1.0f;
    if (!(length < 0x1p60)) { /* too long for float32 with any table: left to the caller */
        known->length = known->residual = 0.0f;
        known->floor = INFINITY;
        known->count = -1;
        return;
    }
    /* A float32 that is at least the double, and far from the numbers that underflow. */
    known->length = (float)(length * (1 + 0x1p-22) + 0x1p-60);
    known->residual = known->length;
    if (largest < 0x1p-50) return; /* v' = 0 */
    const float step = (float)(largest / 127);
    const __m512d scale = _mm512_set1_pd((double)step), inverse = _mm512_set1_pd(1 / (double)step);
    __m512d errors = _mm512_setzero_pd();
    int32_t total = 0;
    for (int64_t i = 0; i <= whole; i++) {
        const __m512d x = _mm512_maskz_loadu_pd(i < whole ? 0xff : rest, vector + i * 8);
        __m256i number = _mm512_cvtpd_epi32(_mm512_mul_pd(x, inverse));
        number = _mm256_max_epi32(_mm256_min_epi32(number, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
        const __m512d error = _mm512_fnmadd_pd(_mm512_cvtepi32_pd(number), scale, x);
        errors = _mm512_fmadd_pd(error, error, errors);
        int32_t pair[4];
        _mm_storeu_si128((__m128i *)pair, _mm256_cvtepi32_epi8(number));
        if (2 * i < groups) words[PLACE(2 * i)] = pair[0];
        if (2 * i + 1 < groups) words[PLACE(2 * i + 1)] = pair[1];
        int32_t numbers[8];
        _mm256_storeu_si256((__m256i *)numbers, number);
        for (int j = 0; j < 8; j++) total += numbers[j];
    }
    known->step = step;
    known->residual = (float)(sqrt(_mm512_reduce_add_pd(errors)) * (1 + 0x1p-22) + length * 0x1p-40 + 0x1p-60);
    *start = -128 * total;
#undef PLACE
}

/* Drops the candidates that later rows have beaten. */
static void drop_beaten(Vector *known, int32_t *rows, float *uppers) {
    int32_t kept = 0;
    for (int32_t i = 0; i < known->count; i++) {
        if (uppers[i] >= known->floor) {
            rows[kept] = rows[i];
            uppers[kept++] = uppers[i];
        }
    }
    known->count = kept;
}

/* Takes, of LANES rows from `first` on, those of `passed`, whose upper bounds reach a vector's floor, and raises the floor;
 * gives up on a vector that has too many. */
VNNI static void take(Vector *known, __mmask16 passed, __m512 upper, const Rows *row, int64_t first, int32_t *rows,
                      float *uppers, int32_t capacity) {
    __m512 error = _mm512_mul_ps(_mm512_loadu_ps(row->residual + first), _mm512_set1_ps(known->length));
    error = _mm512_fmadd_ps(_mm512_loadu_ps(row->length + first), _mm512_set1_ps(known->residual), error);
    /* 2^-20 of each term is four times what rounding these lines can make of it. */
    const __m512 rounding = _mm512_mul_ps(_mm512_add_ps(_mm512_abs_ps(upper), error), _mm512_set1_ps(0x1p-20f));
    __m512 lower = _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), error, upper);
    lower = _mm512_sub_ps(_mm512_sub_ps(lower, _mm512_loadu_ps(row->slack + first)), rounding);
    const float best = _mm512_mask_reduce_max_ps(passed, lower);
    if (best > known->floor) known->floor = best;
    passed = _mm512_mask_cmp_ps_mask(passed, upper, _mm512_set1_ps(known->floor), _CMP_GE_OQ);
    if (known->count > capacity - LANES) drop_beaten(known, rows, uppers);
    if (known->count > capacity - LANES) {
        known->count = -1;
        known->floor = INFINITY;
        return;
    }
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i ids = _mm512_add_epi32(lanes, _mm512_set1_epi32((int32_t)first));
    _mm512_storeu_si512(rows + known->count, _mm512_maskz_compress_epi32(passed, ids));
    _mm512_storeu_ps(uppers + known->count, _mm512_maskz_compress_ps(passed, upper));
    known->count += __builtin_popcount(passed);
}

/* v.w in double precision. */
VNNI static double product(const double *vector, const float *row, int64_t dim) {
    __m512d even = _mm512_setzero_pd(), odd = _mm512_setzero_pd();
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        even = _mm512_fmadd_pd(_mm512_loadu_pd(vector + i), _mm512_cvtps_pd(_mm256_loadu_ps(row + i)), even);
        odd = _mm512_fmadd_pd(_mm512_loadu_pd(vector + i + 8), _mm512_cvtps_pd(_mm256_loadu_ps(row + i + 8)), odd);
    }
    double sum = _mm512_reduce_add_pd(_mm512_add_pd(even, odd));
    for (; i < dim; i++) sum += vector[i] * (double)row[i];
    return sum;
}

/* Leaves, of the candidates of one vector, those that double precision cannot tell from the best. Their number. */
VNNI static int32_t recheck(const Vector *known, const double *vector, const float *table, const int64_t *ids,
                            const double *half, int64_t dim, int32_t *rows, const float *uppers) {
    int32_t first = 0;
    for (int32_t i = 1; i < known->count; i++)
        if (uppers[i] > uppers[first]) first = i;
    const double unit = (double)(dim + 8) * 0x1p-52;
    double best = -INFINITY;
    int32_t kept = 0;
    /* The most promising first: its score sets a floor that most of the others do not reach. */
    for (int32_t turn = -1; turn < known->count; turn++) {
        const int32_t i = turn < 0 ? first : turn;
        if (turn == first || (double)uppers[i] < best) continue;
        const int32_t row = rows[i];
        const double score = product(vector, table + ids[row] * dim, dim) - half[row];
        const double error = unit * ((double)known->length * sqrt(2 * half[row]) + half[row]);
        if (score - error > best) best = score - error;
    }
    int32_t open = 0;
    for (int32_t i = 0; i < known->count; i++) open += (double)uppers[i] >= best;
    for (int32_t i = 0; i < known->count; i++) {
        if ((double)uppers[i] < best) continue;
        const int32_t row = rows[i];
        if (open == 1) { /* nothing is left to compare it with */
            rows[kept++] = row;
            continue;
        }
        const double score = product(vector, table + ids[row] * dim, dim) - half[row];
        const double error = unit * ((double)known->length * sqrt(2 * half[row]) + half[row]);
        if (score + error >= best) rows[kept++] = row;
    }
    return kept;
}

/* Quantizes rows ids[0..n) of a table, (V, dim), into packed, (blocks, groups, BLOCK, 4), and the numbers of each. */
VNNI EXPORT void rapt_nearest_pack(const float *table, const int64_t *ids, int64_t n, int64_t dim, int64_t groups,
                              uint8_t *packed, float *step, float *half_below, float *slack, float *residual,
                              float *length, double *half) {
    const int64_t blocks = (n + BLOCK - 1) / BLOCK;
    for (int64_t r = 0; r < blocks * BLOCK; r++) {
        uint8_t *place = packed + (r / BLOCK) * groups * BLOCK * 4 + (r % BLOCK) * 4;
        const float *row = table + ids[r < n ? r : 0] * dim;
        const int64_t width = r < n ? dim : 0; /* rows that fill up the last block are zero */
        float largest = 0;
        for (int64_t i = 0; i < width; i++) largest = fabsf(row[i]) > largest ? fabsf(row[i]) : largest;
        /* A row too short for its step to be a normal number is all residual. */
        const float s = largest < 0x1p-100f ? 0.0f : largest / 127;
        const double inverse = s > 0 ? 1 / (double)s : 0;
        double squares = 0, errors = 0, stored = 0;
        for (int64_t i = 0; i < groups * 4; i++) {
            const double w = i < width ? (double)row[i] : 0;
            const double p = rint(w * inverse), approximation = p * (double)s; /* |p| <= 127: s is largest / 127 */
            place[(i / 4) * BLOCK * 4 + i % 4] = (uint8_t)((int)p + 128);
            squares += w * w;
            errors += (w - approximation) * (w - approximation);
            stored += approximation * approximation;
        }
        const double h = squares / 2, e = sqrt(errors), f = sqrt(stored);
        if (r < n) half[r] = h;
        /* What float32 arithmetic on a row can add to its error is below 6 units of 2^-24 of each term of a score, of
         * which there are three: ||v'|| ||w'||, ||w||^2/2 and the bounds; 2^-20 is 16. The powers of two that are added
         * are for numbers that underflow; the caller sees to it that the longest row is between 2^-40 and 2^40. */
        step[r] = s;
        half_below[r] = r < n ? (float)(h * (1 - 0x1p-20) - 0x1p-100) : INFINITY;
        slack[r] = (float)(h * 0x1p-18 + 0x1p-98);
        residual[r] = (float)(e * (1 + 0x1p-20) + f * 0x1p-20 + 0x1p-80);
        length[r] = (float)(f * (1 + 0x1p-20));
    }
}

EXPORT int64_t rapt_nearest_vector_bytes(void) { return (int64_t)sizeof(Vector); }

/* What the two searches take. vectors: (n, dim). packed: (blocks, groups, BLOCK, 4). table: (V, dim), whose row ids[r] is
 * row r here. scratch: words, starts, known, rows and uppers (n, capacity).
 * counts: (n): how many of a vector's `rows` hold its nearest row for certain, or -1 where the caller has to look. */
#define ARGUMENTS                                                                                                      \
    const double *vectors, int64_t n, int64_t dim, const uint8_t *packed, int64_t blocks, int64_t groups,              \
        const float *step, const float *half_below, const float *slack, const float *residual, const float *length,    \
        const float *table, const int64_t *ids, const double *half, int32_t *words, int32_t *starts, Vector *known,    \
        int32_t *rows, float *uppers, int32_t capacity, int32_t *counts

/* One that fills up the last tile: nothing passes its bound. */
static const Vector NOTHING = {0.0f, 0.0f, 0.0f, INFINITY, -1};

/* Takes, for one tile's vectors, the rows of one block that pass their bounds. sums: (count, BLOCK). starts: what to add
 * to each vector's sums; NULL where it is in them. */
__attribute__((always_inline)) VNNI static inline void bound(int count, const int32_t *sums, const int32_t *starts,
                                                             int64_t block, const Rows *row, Vector *known,
                                                             int32_t *rows, float *uppers, int32_t capacity) {
    for (int j = 0; j < PARTS; j++) {
        const int64_t first = block * BLOCK + j * LANES;
        const __m512 s = _mm512_loadu_ps(row->step + first), h = _mm512_loadu_ps(row->half + first);
        const __m512 e = _mm512_loadu_ps(row->residual + first), f = _mm512_loadu_ps(row->length + first);
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) {
            __m512i sum = _mm512_load_si512(sums + i * BLOCK + j * LANES);
            if (starts) sum = _mm512_add_epi32(sum, _mm512_set1_epi32(starts[i]));
            __m512 upper = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), s);
            upper = _mm512_fmsub_ps(upper, _mm512_set1_ps(known[i].step), h);
            upper = _mm512_fmadd_ps(e, _mm512_set1_ps(known[i].length), upper);
            upper = _mm512_fmadd_ps(f, _mm512_set1_ps(known[i].residual), upper);
            const __mmask16 passed = _mm512_cmp_ps_mask(upper, _mm512_set1_ps(known[i].floor), _CMP_GE_OQ);
            if (__builtin_expect(passed != 0, 0))
                take(known + i, passed, upper, row, first, rows + i * capacity, uppers + i * capacity, capacity);
        }
    }
}

/* Leaves what double precision leaves, of every vector. */
VNNI static void settle(const double *vectors, int64_t n, int64_t dim, const float *table, const int64_t *ids,
                        const double *half, Vector *known, int32_t *rows, float *uppers, int32_t capacity,
                        int32_t *counts) {
    for (int64_t i = 0; i < n; i++) {
        counts[i] = -1;
        if (known[i].count < 0) continue;
        drop_beaten(known + i, rows + i * capacity, uppers + i * capacity);
        counts[i] = recheck(known + i, vectors + i * dim, table, ids, half, dim, rows + i * capacity,
                            uppers + i * capacity);
    }
}

/* words (tiles, groups, TILE), starts and known (tiles * TILE). */
VNNI EXPORT void rapt_nearest_candidates(ARGUMENTS) {
    const Rows row = {step, half_below, slack, residual, length};
    const int64_t tiles = (n + TILE - 1) / TILE;
    for (int64_t i = 0; i < tiles * TILE; i++) {
        int32_t *place = words + (i / TILE) * groups * TILE + i % TILE;
        if (i < n) {
            quantize(vectors + i * dim, dim, groups, known + i, place, starts + i, OF_TILE);
        } else {
            for (int64_t k = 0; k < groups; k++) place[k * TILE] = 0;
            starts[i] = 0;
            known[i] = NOTHING;
        }
    }
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t tile = 0; tile < tiles; tile++) {
            int32_t sums[TILE * BLOCK] __attribute__((aligned(64)));
            multiply(sums, words + tile * groups * TILE, packed + block * groups * BLOCK * 4, starts + tile * TILE, groups);
            bound(TILE, sums, 0, block, &row, known + tile * TILE, rows + tile * TILE * capacity,
                  uppers + tile * TILE * capacity, capacity);
        }
    settle(vectors, n, dim, table, ids, half, known, rows, uppers, capacity, counts);
}

#if HAS_TILES

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")))

/* Whether the processor has tiles of bytes, the system keeps them, and this process may use them: it asks for that, once
 * for all its threads and children. */
EXPORT int rapt_nearest_has_tiles(void) {
    const unsigned tile = 1u << 24, int8 = 1u << 25, kept = 3u << 17;
    unsigned a, b, c, d, low, high;
    if (!rapt_nearest_runs_here() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & tile) || !(d & int8)) return 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0; /* xgetbv is there */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    /* ARCH_REQ_XCOMP_PERM for XTILEDATA. */
    return (low & kept) == kept && syscall(SYS_arch_prctl, 0x1023L, 18L) == 0;
}

/* Eight tiles of 16 rows of 64 bytes, in the thread that asks; _tile_release gives them up. */
AMX static void configure(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 64;
        shape.rows[i] = DEEP;
    }
    _tile_loadconfig(&shape);
}

/* q.(p + 128) of WIDE vectors and one block, (WIDE, BLOCK). queries: (2, groups / DEEP, DEEP, DEEP) words. */
AMX static inline void multiply_wide(int32_t *out, const int32_t *queries, const uint8_t *rows, int64_t groups) {
    for (int side = 0; side < 2; side++, rows += BLOCK * 2, out += BLOCK / 2) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < groups; k += DEEP) {
            _tile_loadd(4, queries + k * DEEP, 64);
            _tile_loadd(5, queries + (groups + k) * DEEP, 64);
            _tile_loadd(6, rows + k * BLOCK * 4, BLOCK * 4);
            _tile_loadd(7, rows + k * BLOCK * 4 + 64, BLOCK * 4);
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 4, 7);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
        _tile_stored(0, out, BLOCK * 4);
        _tile_stored(1, out + LANES, BLOCK * 4);
        _tile_stored(2, out + DEEP * BLOCK, BLOCK * 4);
        _tile_stored(3, out + DEEP * BLOCK + LANES, BLOCK * 4);
    }
}

/* As rapt_nearest_products: (tiles, blocks, WIDE, BLOCK). */
AMX EXPORT void rapt_nearest_products_wide(const int32_t *words, const int32_t *starts, int64_t tiles,
                                           const uint8_t *packed, int64_t blocks, int64_t groups, int32_t *out) {
    configure();
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t block = 0; block < blocks; block++) {
            int32_t *sums = out + (tile * blocks + block) * WIDE * BLOCK;
            multiply_wide(sums, words + tile * groups * WIDE, packed + block * groups * BLOCK * 4, groups);
            for (int i = 0; i < WIDE * BLOCK; i++) sums[i] += starts[tile * WIDE + i / BLOCK];
        }
    _tile_release();
}

/* groups is a multiple of DEEP. words (tiles, 2, groups / DEEP, DEEP, DEEP), starts and known (tiles * WIDE). */
AMX EXPORT void rapt_nearest_candidates_wide(ARGUMENTS) {
    const Rows row = {step, half_below, slack, residual, length};
    const int64_t tiles = (n + WIDE - 1) / WIDE;
    for (int64_t i = 0; i < tiles * WIDE; i++) {
        int32_t *place = words + (i / DEEP) * groups * DEEP + i % DEEP * DEEP;
        if (i < n) {
            quantize(vectors + i * dim, dim, groups, known + i, place, starts + i, OF_WIDE);
        } else {
            for (int64_t k = 0; k < groups; k++) place[k / DEEP * DEEP * DEEP + k % DEEP] = 0;
            starts[i] = 0;
            known[i] = NOTHING;
        }
    }
    configure();
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t tile = 0; tile < tiles; tile++) {
            int32_t sums[WIDE * BLOCK] __attribute__((aligned(64)));
            multiply_wide(sums, words + tile * groups * WIDE, packed + block * groups * BLOCK * 4, groups);
            bound(WIDE, sums, starts + tile * WIDE, block, &row, known + tile * WIDE, rows + tile * WIDE * capacity,
                  uppers + tile * WIDE * capacity, capacity);
        }
    _tile_release();
    settle(vectors, n, dim, table, ids, half, known, rows, uppers, capacity, counts);
}

#endif

#endif
