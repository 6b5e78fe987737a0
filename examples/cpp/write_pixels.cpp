// Write the pixels that a network receives for an image, as a PPM file. Use it to compare this preprocessing with your own.
//
//     write_pixels BUNDLE IMAGE OUT.ppm
#include <cstdio>
#include <exception>
#include <fstream>

#include "bundle.hpp"

int main(int count, char** arguments) {
    if (count != 4) {
        std::fprintf(stderr, "usage: write_pixels BUNDLE IMAGE OUT.ppm\n");
        return 2;
    }
    try {
        const Image pixels = to_pixels(load_image(arguments[2]), read_bundle(arguments[1]).spec);
        std::ofstream file(arguments[3], std::ios::binary);
        file << "P6\n" << pixels.width << ' ' << pixels.height << "\n255\n";
        file.write(reinterpret_cast<const char*>(pixels.pixels.data()), std::streamsize(pixels.pixels.size()));
        if (!file.flush()) throw std::runtime_error(std::string(arguments[3]) + " cannot be written.");
    } catch (const std::exception& error) {
        std::fprintf(stderr, "write_pixels: %s\n", error.what());
        return 1;
    }
}
