/* generator.c - seeding MT19937, and single words of it. Bulk draws are in isa_random.c. */
#include "exec/kernels/kernels.h"

enum { MT_N = 624, MT_M = 397 };

void tr_generator_seed(tr_generator *g, uint64_t seed) {
    memset(g, 0, sizeof *g);
    g->mt[0] = (uint32_t) seed;
    for (uint32_t i = 1; i < MT_N; i++)
        g->mt[i] = 1812433253u * (g->mt[i - 1] ^ g->mt[i - 1] >> 30) + i;
    g->at = MT_N;
    g->seed = seed;
}

static void next_block(uint32_t *s) {
    for (int i = 0; i < MT_N; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % MT_N] & 0x7fffffffu);
        s[i] = s[(i + MT_M) % MT_N] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
}

uint32_t tr_generator_word(tr_generator *g) {
    if (g->at >= MT_N) {
        next_block(g->mt);
        g->at = 0;
    }
    uint32_t y = g->mt[g->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}
