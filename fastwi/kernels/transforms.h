// The transforms of Winograd's F(4 x 4, 3 x 3) in one dimension, with the points 0, 1, -1, 2, -2 (Lavin & Gray 2016).

#pragma once

#include "products.h"

namespace {

inline void input_1d(const vec d[6], vec t[6]) {  // B^T
    const vec even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], near = d[4] - d[2], far = 2 * (d[3] - d[1]);
    t[0] = 4 * d[0] - 5 * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = near + far;
    t[4] = near - far;
    t[5] = 4 * d[1] - 5 * d[3] + d[5];
}
inline void output_1d(const vec m[6], vec y[4]) {  // A^T
    const vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum + sum2;
    y[1] = difference + 2 * difference2;
    y[2] = sum + 4 * sum2;
    y[3] = difference + 8 * difference2 + m[5];
}
inline void gradient_1d(const vec y[4], vec m[6]) {  // A
    const vec even = y[0] + y[2], odd = y[1] + y[3], even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
    m[0] = y[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = even2 + odd2;
    m[4] = even2 - odd2;
    m[5] = y[3];
}
inline void kernel_1d(const vec g[3], vec u[6]) {  // G
    const vec even = g[0] + g[2], even2 = g[0] * (1 / 24.0f) + g[2] * (1 / 6.0f), odd2 = g[1] * (1 / 12.0f);
    u[0] = g[0] * 0.25f;
    u[1] = (even + g[1]) * (-1 / 6.0f);
    u[2] = (even - g[1]) * (-1 / 6.0f);
    u[3] = even2 + odd2;
    u[4] = even2 - odd2;
    u[5] = g[2];
}
inline void taps_1d(const vec u[6], vec g[3]) {  // G^T
    const vec sum = (u[1] + u[2]) * (-1 / 6.0f), sum2 = u[3] + u[4];
    g[0] = u[0] * 0.25f + sum + sum2 * (1 / 24.0f);
    g[1] = (u[2] - u[1]) * (1 / 6.0f) + (u[3] - u[4]) * (1 / 12.0f);
    g[2] = sum + sum2 * (1 / 6.0f) + u[5];
}

}  // namespace
