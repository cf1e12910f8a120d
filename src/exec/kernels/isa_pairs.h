/* isa_pairs.h - words of two bfloat16, which AVX512-BF16 multiplies and sums up at once; and a convolution's weights in panels
 * of them: of the two channels that a sum takes together, for 16 columns. Forward and by the image as far as it is the same for all
 * kernels of bfloat16. Included by isa_conv_bf16.c and isa_conv_amx.c only. */
#ifndef TERRA_EXEC_ISA_PAIRS_H
#define TERRA_EXEC_ISA_PAIRS_H

#include "exec/kernels/isa_bf16.h"
#include "exec/kernels/isa_conv_grid.h"

_Static_assert((int) NR == (int) VN_F, "a panel is a vector wide");

/* As it lies in images and weights. */
typedef uint32_t word __attribute__((may_alias, aligned(2)));

/* The first n words; 0 beyond. */
ALWAYS vF load_words(const void *from, int64_t n) {
    return (vF) _mm512_maskz_loadu_epi32((__mmask16) ((1u << n) - 1), from);
}
ALWAYS void store_words(void *to, vF x, int64_t n) {
    _mm512_mask_storeu_epi32(to, (__mmask16) ((1u << n) - 1), (__m512i) x);
}

/* Brings memory that is read soon nearer. */
ALWAYS void fetch(const uint16_t *from, int64_t n) {
    for (int64_t i = 0; i < n; i += 32)
        __builtin_prefetch(from + i, 0, 2);
}

/* to[i] = low[i], high[i]; n is a multiple of 16. */
ALWAYS void interleave(word *to, const uint16_t *low, const uint16_t *high, int64_t n) {
    static const uint16_t order[] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                     11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
                                     22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    __m512i first = _mm512_loadu_si512(order), second = _mm512_loadu_si512(order + 32);
    int64_t i = 0;
    for (; i + 2 * NR <= n; i += 2 * NR) {
        __m512i a = _mm512_loadu_si512(low + i), b = _mm512_loadu_si512(high + i);
        _mm512_storeu_si512(to + i, _mm512_permutex2var_epi16(a, first, b));
        _mm512_storeu_si512(to + i + NR, _mm512_permutex2var_epi16(a, second, b));
    }
    if (i < n) {
        __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *) (low + i)));
        __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *) (high + i)));
        _mm512_storeu_si512(to + i, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
}

/* 16 rows of n <= 16 words, row_step elements apart, to n vectors of a word of each row. Rows go on behind: that is fetched. */
ALWAYS void turn_rows(vF x[VN_F], const uint16_t *from, int64_t row_step, int64_t n) {
    _Pragma("GCC unroll 16") for (int r = 0; r < VN_F; r++) {
        __builtin_prefetch(from + r * row_step + 2 * VN_F, 0, 2);
        x[r] = load_words(from + r * row_step, n);
    }
    turn(x);
}

/* Weights as a matrix for each tap: channels that are summed up, `channel_step` apart, by columns, `column_step` apart. */
typedef struct matrices {
    const uint16_t *from;
    int64_t channel_step, column_step;
    int n;             /* taps */
    const int64_t *at; /* [n] where each begins */
    int64_t together;  /* taps of a channel that lie side by side, if all do and nothing else between channels; or 0 */
} matrices;

/* Channels lie side by side: rows of a panel are turned over. */
static void pack_by_channels(const matrices *m, const uint16_t *from, int64_t k, int panels, word *to) {
    for (int t = 0; t < m->n; t++)
        for (int64_t i = 0; i < k; i += VN_F)
            for (int p = 0; p < panels; p++) {
                vF x[VN_F];
                int64_t n = tr__min(VN_F, k - i);
                turn_rows(x, from + m->at[t] + p * NR * m->column_step + 2 * i, m->column_step, n);
                for (int64_t r = 0; r < n; r++)
                    memcpy(to + ((t * k + i + r) * panels + p) * NR, &x[r], sizeof x[r]);
            }
}

/* Columns lie side by side: two channels are interleaved. */
static void pack_by_columns(const matrices *m, const uint16_t *from, int64_t k, int panels, word *to) {
    for (int t = 0; t < m->n; t++)
        for (int64_t i = 0; i < k; i++, to += panels * NR) {
            const uint16_t *row = from + m->at[t] + 2 * i * m->channel_step;
            interleave(to, row, row + m->channel_step, panels * NR);
        }
}

/* A column's taps lie side by side, all of a channel and then all of the next: words of whatever meets there are turned over, then
 * halves of two of them joined. */
static void pack_channels_of_taps(const matrices *m, const uint16_t *from, int64_t k, int panels, word *to, word *strip) {
    int64_t taps = m->together;
    for (int p = 0; p < panels; p++)
        for (int64_t i = 0; i < k; i += VN_F) {
            int64_t n = tr__min(VN_F, k - i);
            const uint16_t *rows = from + p * NR * m->column_step + 2 * i * taps;
            for (int64_t w = 0; w < n * taps; w += VN_F) {
                vF x[VN_F];
                turn_rows(x, rows + 2 * w, m->column_step, tr__min(VN_F, n * taps - w));
                memcpy(strip + w * NR, x, sizeof x);
            }
            for (int t = 0; t < m->n; t++) {
                int64_t low = m->at[t], high = low + taps;
                int right = low % 2 * 16, left = (high + 1) % 2 * 16;
                for (int64_t r = 0; r < n; r++, low += 2 * taps, high += 2 * taps) {
                    vFu a, b;
                    memcpy(&a, strip + low / 2 * NR, sizeof a);
                    memcpy(&b, strip + high / 2 * NR, sizeof b);
                    a = (a >> right & 0xffff) | (b << left & 0xffff0000);
                    memcpy(to + ((t * k + i + r) * panels + p) * NR, &a, sizeof a);
                }
            }
        }
}

/* A channel's taps lie side by side, all of a column and then all of the next: two channels are interleaved, then 16 columns' taps
 * turned over. Taps that aren't wanted have no slot. */
ALWAYS void pack_columns(int64_t taps, const int *slot, const matrices *m, const uint16_t *from, int64_t k, int panels, word *to,
                         word *strip) {
    int64_t n = panels * NR * taps;
    for (int64_t i = 0; i < k; i++, from += 2 * m->channel_step, to += panels * NR) {
        interleave(strip, from, from + m->channel_step, n);
        fetch(from + 2 * m->channel_step, i + 1 < k ? n : 0);
        fetch(from + 3 * m->channel_step, i + 1 < k ? n : 0);
        for (int p = 0; p < panels; p++)
            for (int64_t first = 0; first < taps; first += VN_F) {
                vF x[VN_F];
                _Pragma("GCC unroll 16") for (int r = 0; r < VN_F; r++)
                    memcpy(&x[r], strip + (p * NR + r) * taps + first, sizeof x[r]);
                turn(x);
                _Pragma("GCC unroll 16") for (int t = 0; t < VN_F; t++)
                    if (first + t < taps && slot[first + t] >= 0)
                        memcpy(to + (slot[first + t] * k * panels + p) * NR, &x[t], sizeof x[t]);
            }
    }
}

static void pack_columns_of_taps(const matrices *m, const uint16_t *from, int64_t k, int panels, word *to, word *strip) {
    int *slot = (int *) strip;
    for (int64_t t = 0; t < m->together; t++)
        slot[t] = -1;
    for (int t = 0; t < m->n; t++)
        slot[m->at[t]] = t;
    strip += (m->together + NR - 1) / NR * NR;
    if (m->together == 9) // half of the turning falls away
        pack_columns(9, slot, m, from, k, panels, to, strip);
    else
        pack_columns(m->together, slot, m, from, k, panels, to, strip);
}

static void pack_any(const matrices *m, const uint16_t *from, int64_t k, int panels, word *to) {
    for (int t = 0; t < m->n; t++)
        for (int64_t i = 0; i < k; i++)
            for (int c = 0; c < panels * NR; c++) {
                const uint16_t *at = from + m->at[t] + 2 * i * m->channel_step + c * m->column_step;
                *to++ = at[0] | (word) at[m->channel_step] << 16;
            }
}

/* What pack_panels wants of `strip`. */
static inline size_t strip_words(const matrices *m) {
    return (size_t) (m->together + 1) * VN_F * NR;
}

/* to [taps, k, panels, NR]: 2 * k channels from `channel` on, of panels from `column` on. */
static void pack_panels(const matrices *m, int64_t channel, int64_t k, int64_t column, int panels, word *to, word *strip) {
    const uint16_t *from = m->from + channel * m->channel_step + column * m->column_step;
    if (m->channel_step == 1)
        pack_by_channels(m, from, k, panels, to);
    else if (m->column_step == 1)
        pack_by_columns(m, from, k, panels, to);
    else if (m->together && m->channel_step == m->together)
        pack_channels_of_taps(m, from, k, panels, to, strip);
    else if (m->together && m->column_step == m->together)
        pack_columns_of_taps(m, from, k, panels, to, strip);
    else
        pack_any(m, from, k, panels, to);
}

/* The way back, for a derivative: sums of 16 columns, rounded. */
typedef struct unpack {
    uint16_t *to;         /* of the first channel and column */
    int64_t channel_step, column_step;
    const float *from; /* of channel i and tap t: from + (t * channels + i) * from_step */
    int64_t from_step, channels, taps;
    const int64_t *at; /* [taps] */
    int64_t together;
} unpack;

/* Sums in the order of channels, each with so many taps. */
typedef struct sums {
    const float *at;
    int64_t tap, taps, by_tap, back; /* back: from behind the last tap to the next channel */
} sums;

ALWAYS vF next_sums(sums *s) {
    vF x;
    memcpy(&x, s->at, sizeof x);
    s->at += s->by_tap;
    if (++s->tap == s->taps) {
        s->tap = 0;
        s->at -= s->back;
    }
    return x;
}

/* n elements that lie side by side: channel after channel, each with so many taps. */
static PAIRS void unpack_rows(const unpack *u, uint16_t *to, const float *from, int64_t n, int64_t taps) {
    int64_t by_tap = u->channels * u->from_step;
    sums s = {.at = from, .taps = taps, .by_tap = by_tap, .back = taps * by_tap - u->from_step};
    for (int64_t w = 0; w < n / 2; w += VN_F) {
        int64_t words = tr__min(VN_F, n / 2 - w);
        vF x[VN_F];
        _Pragma("GCC unroll 16") for (int i = 0; i < VN_F; i++) {
            x[i] = (vF){0};
            if (i < words) {
                vF low = next_sums(&s);
                x[i] = zip_pairs(low, next_sums(&s));
            }
        }
        turn(x);
        _Pragma("GCC unroll 16") for (int r = 0; r < VN_F; r++) store_words(to + r * u->column_step + 2 * w, x[r], words);
    }
}

static inline PAIRS void unpack_panel(const unpack *u) {
    if (u->channel_step == 1) {
        for (int64_t t = 0; t < u->taps; t++)
            unpack_rows(u, u->to + u->at[t], u->from + t * u->channels * u->from_step, u->channels, 1);
        return;
    }
    if (u->together && u->channel_step == u->together) {
        unpack_rows(u, u->to, u->from, u->channels * u->taps, u->taps);
        return;
    }
    for (int64_t t = 0; t < u->taps; t++)
        for (int64_t i = 0; i < u->channels; i++) {
            uint16_t row[NR];
            vF x;
            memcpy(&x, u->from + (t * u->channels + i) * u->from_step, sizeof x);
            narrow_pairs_to(row, x);
            for (int c = 0; c < NR; c++)
                u->to[u->at[t] + i * u->channel_step + c * u->column_step] = row[c];
        }
}

/* ------------------------------------------------------------------------------------------ a convolution of bfloat16 images */

/* Where tap `tap` of a filter begins. */
static int64_t tap_at(const tr__conv_bf16 *v, int64_t tap) {
    return tap / v->of.kernel[1] * v->strides[2] + tap % v->of.kernel[1] * v->strides[3];
}

/* Do the weights' taps lie side by side, in order? How many, or 0. */
static int64_t taps_together(const tr__conv_bf16 *v) {
    const int64_t *k = v->of.kernel, *s = v->strides;
    return (k[1] == 1 || s[3] == 1) && (k[0] == 1 || s[2] == k[1]) ? k[0] * k[1] : 0;
}

/* Pixels that are gathered, and the weights that they are multiplied with. */
typedef struct filtered {
    grid of;
    const float *bias;
    matrices weights;
} filtered;
typedef tr_status run_filtered(const tr_kernel_call *c, const filtered *f);

/* From taps by number to where they begin: nobody asks for the numbers again. */
static void find_taps(const tr__conv_bf16 *v, filtered *f) {
    for (int64_t t = 0; t < f->of.n_taps; t++)
        f->of.tap[t] = tap_at(v, f->of.tap[t]);
    f->weights.n = (int) f->of.n_taps;
    f->weights.at = f->of.tap;
}

static tr_status forward(const tr_kernel_call *c, const tr__conv_bf16 *conv, run_filtered *run) {
    const tr__conv *v = &conv->of;
    filtered g = {.of = {.from = conv->src, .to = conv->dst, .images = v->n, .channels = v->ci, .columns = v->co}, .bias = v->bias,
                .weights = {.from = conv->weights, .channel_step = conv->strides[1], .column_step = conv->strides[0],
                            .together = taps_together(conv)}};
    TR_TRY(take_grid(c, v, sizeof(uint16_t), &g.of));
    lay_forward(&g.of, v);
    find_taps(conv, &g);
    return run(c, &g);
}

static tr_status by_image(const tr_kernel_call *c, const tr__conv_bf16 *conv, run_filtered *run) {
    const tr__conv *v = &conv->of;
    filtered g = {.of = {.from = conv->dst, .to = conv->src, .images = v->n, .channels = v->co, .columns = v->ci},
                .weights = {.from = conv->weights, .channel_step = conv->strides[0], .column_step = conv->strides[1],
                            .together = taps_together(conv)}};
    TR_TRY(take_grid(c, v, sizeof(uint16_t), &g.of));
    int64_t at[2];
    for (at[0] = 0; at[0] < v->stride[0]; at[0]++)
        for (at[1] = 0; at[1] < v->stride[1]; at[1]++) {
            lay_remainder(&g.of, v, at);
            find_taps(conv, &g);
            if (g.of.n_taps == 0)
                clear_pixels(c, &g.of);
            else if (pixels_in(&g.of))
                TR_TRY(run(c, &g));
        }
    return TR_OK;
}

#endif
