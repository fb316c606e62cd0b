// strip_topk: the k strips of a bank that fit each query best, over all shifts.
// SPDX-License-Identifier: Apache-2.0
//
// The answer is that of strip_score on every strip that is alive, sorted by score (descending), then by row. It is
// found by screening: an approximate score with a proven bound on its error, computed for every pair, keeps the
// pairs that may belong to the answer, and strip_score decides between those. So the ids do not depend on the
// instruction set, the number of threads, or the size of anything.
//
// Screening, for a block of 16 strips (lanes) and a tile of queries, with Q and S the planes of strip_bank.h as
// complex numbers and the query scaled to norm 1:
//
//   A_f[lane] = sum_c conj(Q_f[c]) S_f[c][lane]                       one product per frequency, no sum across lanes
//   c[s]      = A_0 + sum_f Re(A_f e^(2 pi i f s / W)) + A_ny (-1)^s   an inverse transform within the lane
//   score     = c[s] / sqrt(energy of the window at s)                 a circular sum of column energies
//
// The form "fp32" takes three products instead of four: with conj(Q_f[c]) = c + i d and S_f[c] = a + i b,
//   k1 = c (a + b), k2 = a (d - c), k3 = b (c + d);   Re = k1 - k3, Im = k1 + k2.
// The form "bf16" does the same on decoded bfloat16; "bf16-dot" multiplies pairs of bfloat16 with float32 sums
// (vdpbf16ps) after rounding the query too.
//
// The bound. u = 2^-24, g(n) = n u / (1 - n u); n = channels summed in a row (at most kChannelsInARow) plus the
// number of such runs. Sums are over f, norms over channels, and sum_f |Q_f| |S_f| <= |Q| |S| = |S|.
//   products    three: |error of A_f| <= 4 g(n + 4) |Q_f| |S_f|    (Cauchy-Schwarz on each of k1, k2, k3)
//               four (bf16-dot): 2 g(2 n + 4) |Q_f| |S_f|
//   rounding    |sum_f conj(Q_f - rounded) S_f| <= |Q - rounded| |S|, the residual being computed, not assumed
//   inverse     at most 4 g(8 (log2 W + 1) + 2 odd part of W + 8) sum_f |A_f|
// Their sum times 1.1 is epsilon, and |c[s] - exact| <= e = epsilon |S| for every shift. What float32 adds in the
// window norm, its product and the rounding of the score is below 24 u; kScoreSlack = 64 u is allowed for it.
//
// The true best shift s* has c[s*] >= max c - 2 e. So with select="correlation"
//   lower = min, upper = max   of (c[s] -+ e) / norm[s]   over the shifts with c[s] >= max c - 2 e,
// and with "cosine" both are maxima over all shifts. A pair is kept while its upper bound reaches the k-th best
// lower bound known. Kept pairs live in a list of fixed size for each query and slot; a list that runs full is
// first pruned and, if that is not enough (near-duplicates), rescored. Strips whose energies are beyond what the
// bound was proven for (NaN, Inf, |S|^2 outside 2^-80 .. 2^110) are rescored at sight, but for strips that hold
// nothing but zeros (score 0) or a NaN or Inf (no score), which are recognised.
//
// score="dot" is the same with every window norm 1, select="cosine", and bounds times |q| at the end. There is no
// absolute slack then: what rounding adds is a share of |S|, so kScoreSlack is added to epsilon. (Rounding is
// monotone: a bound that holds before the last product holds after it.) Where |q| is outside 2^-100 .. 2^100, every
// pair is rescored.
//
// Groups. Rows of a group follow one another, and a slot sees rows in ascending order. So a slot holds back the best
// row of the group it is in and puts it on its list when the next group begins: a list has a group once, and its k-th
// lower bound is a bound for the k-th best group. Where two rows of a group may both be its best, they are rescored at
// once. A group that several slots saw is brought together before the answer is decided.
//
// Floor. Bytes: the bank once, and once more for every further pass of queries (see strip_topk_plan.h).
// Operations a pair: 3 K (W/2 - 1) + 2 K multiply-adds in fp32, a quarter of 4 K (W/2 - 1) + 2 K dot products of
// two in bf16-dot, against K W Wq for the direct form, plus about 5 W for inverse, norm and comparison.
#pragma once
#include "geoloc_fast/strip_bank.h"

namespace geoloc_fast {

struct StripTopkParams {
  StripBankView bank;
  const float* query;    // [batch][K][padded_width], contiguous
  const int64_t* width;  // [batch], each from 1 to padded_width; null: all are padded_width
  int64_t batch, padded_width;
  int64_t k;
  bool cosine;           // select="cosine"
  bool dot;              // score="dot", whatever `cosine` says
  const bool* alive;     // [count]; null: all are
  const int64_t* group;  // [count], ascending: one row a group is answered, the best; null: every row is a group
  float* score;          // [batch][k], best first; -inf, -1, -1 where there is no row
  int64_t* index;        // [batch][k]
  int64_t* shift;        // [batch][k]
  const double* circle;  // see strip_bank.h
  void* workspace;       // strip_topk_workspace bytes, aligned to 64
};

constexpr int64_t kMaxPlanName = 64;

namespace cpu {
// `plan` receives what ran, such as "avx512bf16/bf16-dot/spectral16". kBadSize, with nothing read, if sizes or
// widths are out of range.
Status strip_topk(const StripTopkParams& params, int threads, char plan[kMaxPlanName]);
int64_t strip_topk_workspace(const StripTopkParams& params, int threads);
}  // namespace cpu

namespace cuda {
// The same answer, launched on `stream` of `device`; a width outside its range is taken as the nearest one inside.
// kBadSize for a bank that does not fit.
// How it works: cuda/strip_topk_lists.cuh, which lets groups lie on several lists, _screen.cuh and _select.cuh.
struct DeviceLimits {
  int multiprocessors;
  int64_t shared_bytes;  // that a block may have
};
Status strip_topk(const StripTopkParams& params, const DeviceLimits& limits, int device, void* stream,
                  char plan[kMaxPlanName]);
// Whether there is a kernel for such a bank: W is 1, 16 or 64, and a tile of queries fits beside the ring.
bool strip_topk_fits(const StripBankView& bank, const DeviceLimits& limits);
// Of one list; a query of a batch has one at least, whatever that takes.
int64_t strip_topk_list_bytes(int64_t k);
// For the same sizes, limits, and presence of `width`.
int64_t strip_topk_workspace(const StripTopkParams& params, const DeviceLimits& limits);
}  // namespace cuda

}  // namespace geoloc_fast
