// Minimax polynomial (relative error 2.0e-9, Remez) for 2^f on [-1/2, 1/2]; evaluated in fp32 it is correct to 0.7 ulp.
#pragma once

namespace fastrl {

constexpr int exp2_degree = 6;
constexpr float exp2_coefficients[exp2_degree + 1] = {1.0000000006e+00f, 6.9314720535e-01f, 2.4022646734e-01f, 5.5503294112e-02f,
                                                     9.6185095417e-03f, 1.3399755854e-03f, 1.5340116754e-04f};

}  // namespace fastrl
