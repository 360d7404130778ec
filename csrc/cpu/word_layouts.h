// Arrangements of words within two vectors, for the last stages of a transform. Included after words_*.h.
//
// Two vectors hold 2 kWords consecutive words. In layout t the first has the words whose index modulo 2t is below t,
// in order, the second the others: partners of a butterfly of distance t share a lane. Layout kWords is memory order.
struct Relayout {
  alignas(64) uint32_t first[kWords];
  alignas(64) uint32_t second[kWords];
};
constexpr Relayout relayout(int64_t from, int64_t to) {
  Relayout index{};
  for (int64_t lane = 0; lane < kWords; ++lane) {
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t word = lane / to * 2 * to + half * to + lane % to;
      const int64_t source = word / (2 * from) * from + word % from + (word / from % 2) * kWords;
      (half == 0 ? index.first : index.second)[lane] = static_cast<uint32_t>(source);
    }
  }
  return index;
}
template <int64_t kFrom, int64_t kTo>
constexpr Relayout kRelayout = relayout(kFrom, kTo);

template <int64_t kFrom, int64_t kTo>
inline void change_layout(Vw& u, Vw& v) {
  const Vw x = shuffle_words(u, v, kRelayout<kFrom, kTo>.first);
  v = shuffle_words(u, v, kRelayout<kFrom, kTo>.second);
  u = x;
}

// Lane -> butterfly group of distance t.
struct Groups {
  alignas(64) uint32_t of[kWords];
};
constexpr Groups groups_of(int64_t t) {
  Groups g{};
  for (int64_t lane = 0; lane < kWords; ++lane) g.of[lane] = static_cast<uint32_t>(lane / t);
  return g;
}
template <int64_t kT>
constexpr Groups kGroups = groups_of(kT);
