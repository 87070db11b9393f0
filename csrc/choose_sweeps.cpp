#include <atomic>
#include <stdexcept>

#include "sweeps.h"

namespace fastrl {
namespace {

bool runs_here(const std::string& name) {
#if defined(__x86_64__)
    if (name == "avx512")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
    if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    return name == "portable";
}

const Sweeps& named_sweeps(const std::string& name) {
#if defined(__x86_64__)
    if (name == "avx512") return avx512_sweeps;
    if (name == "avx2") return avx2_sweeps;
#endif
    return portable_sweeps;
}

const Sweeps& fastest_sweeps() {
    for (const char* name : {"avx512", "avx2"})
        if (runs_here(name)) return named_sweeps(name);
    return portable_sweeps;
}

std::atomic<const Sweeps*> chosen{nullptr};

}  // namespace

const Sweeps& current_sweeps() {
    const Sweeps* sweeps = chosen.load(std::memory_order_acquire);
    if (sweeps == nullptr) {
        sweeps = &fastest_sweeps();
        chosen.store(sweeps, std::memory_order_release);
    }
    return *sweeps;
}

void force_sweeps(const std::string& name) {
    if (name == "auto") {
        chosen.store(&fastest_sweeps(), std::memory_order_release);
        return;
    }
    if (name != "avx512" && name != "avx2" && name != "portable")
        throw std::invalid_argument("the path must be avx512, avx2, portable or auto, got '" + name + "'");
    if (!runs_here(name)) throw std::invalid_argument("this processor does not run the " + name + " path");
    chosen.store(&named_sweeps(name), std::memory_order_release);
}

}  // namespace fastrl
