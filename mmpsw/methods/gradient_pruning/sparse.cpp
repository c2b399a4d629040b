// The backward pass of a convolution, without the zeros of its output's
// gradient g. All is float32 and NHWC: channels lie next to each other, so that
// a number of g adds a multiple of one row of channels to another, in registers.
// X and dX are padded, so that no tap leads out of them.
//
// g: P pixels of O channels.  w, dw: O x taps x I.  x, dx: rows of I channels.
// base[p]: where in x the first tap of pixel p is.  offset[t]: tap t from there.
#include <vector>

typedef float vec __attribute__((vector_size(64), aligned(4)));

// c[0 : 16 V] += sum over k of value[k] * b[at[k] : at[k] + 16 V]
template <int V>
static void add(float* c, const float* b, const int* at, const float* value, int n) {
    vec sum[V];
    for (int v = 0; v < V; v++) sum[v] = *(const vec*)(c + 16 * v);
    for (int k = 0; k < n; k++)
        for (int v = 0; v < V; v++) sum[v] += value[k] * *(const vec*)(b + at[k] + 16 * v);
    for (int v = 0; v < V; v++) *(vec*)(c + 16 * v) = sum[v];
}

// dx[p + t] += sum over o of g[p, o] w[o, t]; a tile's numbers of g by pixels
template <int V>
static void input(const float* g, int P, int O, const int* base, const float* w, int taps,
                  const int* offset, int I, float* dx) {
    const int T = 256;
    std::vector<int> at(T * O), begin(T + 1);
    std::vector<float> value(T * O);
    for (int first = 0; first < P; first += T) {
        int pixels = P - first < T ? P - first : T, k = 0;
        for (int p = 0; p < pixels; p++) {
            const float* row = g + (long)(first + p) * O;
            begin[p] = k;
            for (int o = 0; o < O; o++) at[k] = o * taps * I, value[k] = row[o], k += row[o] != 0;
        }
        begin[pixels] = k;
        for (int i = 0; i < I; i += 16 * V)
            for (int t = 0; t < taps; t++)
                for (int p = 0; p < pixels; p++)
                    add<V>(dx + base[first + p] + offset[t] + i, w + t * I + i,
                           &at[begin[p]], &value[begin[p]], begin[p + 1] - begin[p]);
    }
}

// dw[o, t] += sum over p of g[p, o] x[p + t]; a tile's numbers of g by channels
template <int V>
static void weight(const float* g, int P, int O, const int* base, const float* x, int taps,
                   const int* offset, int I, float* dw) {
    const int T = 512 / V, S = T + 16;  // x's part of a tile fits into the L1 cache
    std::vector<int> at(S * O), count(O);
    std::vector<float> value(S * O);
    for (int first = 0; first < P; first += T) {
        count.assign(O, 0);
        for (int p = first; p < P && p < first + T; p++) {
            const float* row = g + (long)p * O;
            for (int o = 0; o < O; o++) {
                int k = o * S + count[o];
                at[k] = base[p], value[k] = row[o], count[o] += row[o] != 0;
            }
        }
        for (int i = 0; i < I; i += 16 * V)
            for (int t = 0; t < taps; t++)
                for (int o = 0; o < O; o++)
                    add<V>(dw + ((long)o * taps + t) * I + i, x + offset[t] + i, &at[o * S],
                           &value[o * S], count[o]);
    }
}

#define WIDEST(f) (I % 128 == 0 ? f<8> : I % 64 == 0 ? f<4> : I % 32 == 0 ? f<2> : f<1>)

extern "C" void backward_input(const float* g, int P, int O, const int* base, const float* w,
                               int taps, const int* offset, int I, float* dx) {
    WIDEST(input)(g, P, O, base, w, taps, offset, I, dx);
}

extern "C" void backward_weight(const float* g, int P, int O, const int* base, const float* x,
                                int taps, const int* offset, int I, float* dw) {
    WIDEST(weight)(g, P, O, base, x, taps, offset, I, dw);
}
