// Antialiased resize and crop: the C++ counterpart of edgetl/core/preprocess.py.
//
// The resize is Pillow's convolution: one pass per axis, weights in fixed point with 22 fractional bits, and a result of 8 bits after
// each pass. The order of the passes matters, because each pass clips and rounds.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "image.hpp"

namespace {

constexpr int kFractionBits = 22;

// Weights of the source pixels first, first + 1, … for one pixel of the result.
struct Window {
    int first;
    std::vector<std::int32_t> weights;
};

struct Filter {
    double (*weight)(double);
    double support;  // radius in pixels
};

double bilinear(double x) {
    x = std::abs(x);
    return x < 1 ? 1 - x : 0;
}

double bicubic(double x) {  // Catmull-Rom: a = -0.5
    x = std::abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

Filter filter_of(const PreprocessSpec& spec) {
    if (spec.interpolation == "bilinear") return {bilinear, 1};
    if (spec.interpolation == "bicubic") return {bicubic, 2};
    throw std::runtime_error("interpolation " + spec.interpolation + " is not supported. Use bilinear or bicubic.");
}

// Return one window per pixel of a result with `size` pixels, which covers the source from `low` to `high`.
std::vector<Window> windows(int source_size, float low, float high, int size, Filter filter) {
    const double scale = double(high - low) / size, stretch = std::max(scale, 1.0), support = filter.support * stretch;
    std::vector<Window> result(size);
    for (int i = 0; i < size; ++i) {
        const double center = low + (i + 0.5) * scale;
        const int first = std::max(0, int(center - support + 0.5)), last = std::min(source_size, int(center + support + 0.5));
        std::vector<double> weights;
        double sum = 0;
        for (int x = first; x < last; ++x) sum += weights.emplace_back(filter.weight((x - center + 0.5) * (1 / stretch)));
        result[i].first = first;
        for (double weight : weights) {
            const double fixed = weight / sum * (1 << kFractionBits);
            result[i].weights.push_back(std::int32_t(fixed + (fixed < 0 ? -0.5 : 0.5)));
        }
    }
    return result;
}

// Weighted sum of the three channels, from `source` on, `step` bytes between neighbors.
void convolve(const std::uint8_t* source, std::size_t step, const std::vector<std::int32_t>& weights, std::uint8_t* out) {
    std::int32_t sum[3] = {1 << (kFractionBits - 1), 1 << (kFractionBits - 1), 1 << (kFractionBits - 1)};
    for (std::int32_t weight : weights) {
        for (int c = 0; c < 3; ++c) sum[c] += source[c] * weight;
        source += step;
    }
    for (int c = 0; c < 3; ++c) out[c] = std::uint8_t(std::clamp(sum[c] >> kFractionBits, 0, 255));
}

// Resample the rows from `top` to `bottom` to the columns that `columns` describes.
Image resample_columns(const Image& image, const std::vector<Window>& columns, int left, int width, int top, int bottom) {
    Image result(width, bottom - top);
    for (int y = 0; y < result.height; ++y)
        for (int x = 0; x < width; ++x) {
            const Window& window = columns[left + x];
            convolve(image.at(window.first, top + y), 3, window.weights, result.at(x, y));
        }
    return result;
}

Image resample_rows(const Image& image, const std::vector<Window>& rows) {
    Image result(image.width, int(rows.size()));
    for (int y = 0; y < result.height; ++y)
        for (int x = 0; x < result.width; ++x)
            convolve(image.at(x, rows[y].first), std::size_t{3} * image.width, rows[y].weights, result.at(x, y));
    return result;
}

// Round half to even, as Python's round.
int half_even(double value) { return int(std::nearbyint(value)); }

// Size of the resized image, before the crop.
void resized_size(const Image& image, const PreprocessSpec& spec, int& width, int& height) {
    const int target_h = int(std::floor(spec.height / spec.crop_pct)), target_w = int(std::floor(spec.width / spec.crop_pct));
    const double by_height = double(image.height) / target_h, by_width = double(image.width) / target_w;
    if (spec.crop_mode == "squash") {
        width = target_w, height = target_h;
    } else if (spec.crop_mode == "center" && target_h == target_w) {
        const double longer = std::max(image.width, image.height), shorter = std::min(image.width, image.height);
        const int other = int(target_w * longer / shorter);
        width = image.width <= image.height ? target_w : other;
        height = image.width <= image.height ? other : target_w;
    } else {
        const double ratio = spec.crop_mode == "border" ? std::max(by_height, by_width) : std::min(by_height, by_width);
        width = std::max(1, half_even(image.width / ratio)), height = std::max(1, half_even(image.height / ratio));
    }
}

// Center the image on a canvas at least as large as the input: mean color for crop_mode border, else black.
Image pad(const Image& image, const PreprocessSpec& spec) {
    Image canvas(std::max(image.width, spec.width), std::max(image.height, spec.height));
    if (spec.crop_mode == "border")
        for (std::size_t i = 0; i < canvas.pixels.size(); ++i) canvas.pixels[i] = std::uint8_t(half_even(255 * spec.mean[i % 3]));
    const int left = std::max(0, (spec.width - image.width) / 2), top = std::max(0, (spec.height - image.height) / 2);
    for (int y = 0; y < image.height; ++y) std::copy_n(image.at(0, y), 3 * image.width, canvas.at(left, top + y));
    return canvas;
}

}  // namespace

Image to_pixels(const Image& image, const PreprocessSpec& spec) {
    const Filter filter = filter_of(spec);
    int width, height;
    resized_size(image, spec, width, height);
    const std::vector<Window> columns = windows(image.width, 0, float(image.width), width, filter);
    const bool inside = width >= spec.width && height >= spec.height;
    if (inside && spec.resize == "fused" && spec.crop_mode != "squash" && image.height <= 2 * image.width) {
        // Resample only what the crop keeps. The margin holds the source rows that the first and the last row of the crop need.
        const double scale = double(image.height) / height, margin = 3 * std::max(1.0, scale) + 1;
        const int left = half_even((width - spec.width) / 2.0), top = half_even((height - spec.height) / 2.0);
        const double low = top * scale, high = (top + spec.height) * scale;
        const int first = std::max(0, int(std::floor(low - margin))), last = std::min(image.height, int(std::ceil(high + margin)));
        const Image part = resample_columns(image, columns, left, spec.width, first, last);
        const float end = float(std::min(high - first, double(part.height)));
        return resample_rows(part, windows(part.height, float(low - first), end, spec.height, filter));
    }
    const std::vector<Window> rows = windows(image.height, 0, float(image.height), height, filter);
    // Pillow 13 resamples the rows first if the image loses far more rows than columns. Earlier versions never do.
    const bool rows_first = image.height > height && image.height - height > 2 * (image.width - width);
    const Image whole = rows_first ? resample_columns(resample_rows(image, rows), columns, 0, width, 0, height)
                                   : resample_rows(resample_columns(image, columns, 0, width, 0, image.height), rows);
    const Image resized = pad(whole, spec);
    const int left = half_even((resized.width - spec.width) / 2.0), top = half_even((resized.height - spec.height) / 2.0);
    Image result(spec.width, spec.height);
    for (int y = 0; y < spec.height; ++y) std::copy_n(resized.at(left, top + y), 3 * spec.width, result.at(0, y));
    return result;
}
