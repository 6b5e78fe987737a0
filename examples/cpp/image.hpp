// Image in memory, and the functions that make one.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

// RGB image with 8 bits per channel. Row-major: red, green and blue of the pixel (x, y) start at pixels[3 * (y * width + x)].
struct Image {
    int width;
    int height;
    std::vector<std::uint8_t> pixels;

    Image(int width, int height) : width(width), height(height), pixels(std::size_t{3} * width * height) {}
    std::uint8_t* at(int x, int y) { return &pixels[std::size_t{3} * (std::size_t(y) * width + x)]; }
    const std::uint8_t* at(int x, int y) const { return &pixels[std::size_t{3} * (std::size_t(y) * width + x)]; }
};

// Preprocessing settings of a bundle: the object "preprocess" of manifest.json.
struct PreprocessSpec {
    int height;                  // input_size[0]
    int width;                   // input_size[1]
    std::string crop_mode;       // center, squash or border
    double crop_pct;             // ratio of the resized side that the crop keeps
    std::string interpolation;   // bilinear or bicubic
    std::string resize;          // fused or two-step
    std::array<double, 3> mean;  // padding color of crop_mode border, 0..1
};

// Decode a JPEG or PNG file to an upright image. Throws std::runtime_error if the file is damaged or not supported.
Image load_image(const std::string& path);

// Resize and crop an upright image to the input size. Throws std::runtime_error for an interpolation that is not supported.
Image to_pixels(const Image& image, const PreprocessSpec& spec);
