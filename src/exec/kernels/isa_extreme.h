/* isa_extreme.h - the greatest or least of a row of floats, in vectors. Included by isa_*.c only, after ew_math.h. */
#ifndef TERRA_EXEC_ISA_EXTREME_H
#define TERRA_EXEC_ISA_EXTREME_H

#define ABOVE(a, v) (((v) > (a)) | ((v) != (v)))
#define BELOW(a, v) (((v) < (a)) | ((v) != (v)))
#define ITSELF(v)   (v)

/* The extreme of a row, in vectors: for floats. */
#define ROW_EXTREME(id, T, V, VN, start, BETTER, value)                                \
    static double row_##id##_##T(const T *x, int64_t n, double centre, double power) { \
        V a = (V){0} + (T) (start), b = a, w;                                          \
        int64_t i = 0;                                                                 \
        for (; i + 2 * VN <= n; i += 2 * VN) {                                         \
            memcpy(&w, x + i, sizeof w);                                               \
            w = value(w);                                                              \
            a = V##_select(BETTER(a, w), w, a);                                        \
            memcpy(&w, x + i + VN, sizeof w);                                          \
            w = value(w);                                                              \
            b = V##_select(BETTER(b, w), w, b);                                        \
        }                                                                              \
        a = V##_select(BETTER(a, b), b, a);                                            \
        for (; i < n; i++) {                                                           \
            w = value((V){0} + x[i]);                                                  \
            a = V##_select(BETTER(a, w), w, a);                                        \
        }                                                                              \
        T m = a[0];                                                                    \
        for (int k = 1; k < VN; k++)                                                   \
            m = BETTER(m, a[k]) ? a[k] : m;                                            \
        return m;                                                                      \
    }

#endif
