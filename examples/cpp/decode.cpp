// Decoding of JPEG files (libjpeg, the decoder of Pillow) and PNG files (stb_image) to upright RGB images.
//
// Files that need a rule of edgetl which this example leaves out are refused, because a prediction for other pixels may be wrong:
// CMYK, 16 bits per channel, more than 40 million pixels, and an orientation that is stored outside a JPEG file's EXIF block.
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include <jpeglib.h>  // after cstdio: it needs FILE

#include "image.hpp"

#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_PNG
#include <stb/stb_image.h>

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr double kMaxPixels = 40e6;

[[noreturn]] void refuse(const std::string& reason) { throw std::runtime_error(reason); }

void check_size(double width, double height) {
    if (width * height > kMaxPixels) refuse("the image has more than 40 million pixels. Make it smaller.");
}

bool contains(const std::uint8_t* data, std::size_t size, const std::string& text) {
    return std::string(reinterpret_cast<const char*>(data), size).find(text) != std::string::npos;
}

// Return the orientation (tag 0x0112) in an EXIF block that starts with a TIFF header; 1 (upright) if it has none or is damaged.
int exif_orientation(const std::uint8_t* tiff, std::size_t size) {
    if (size < 8) return 1;
    const bool little = tiff[0] == 'I';
    const auto number = [&](std::size_t at, int bytes) {
        std::size_t value = 0;
        for (int i = 0; i < bytes && at + bytes <= size; ++i) value |= std::size_t(tiff[at + i]) << 8 * (little ? i : bytes - 1 - i);
        return value;
    };
    const std::size_t directory = number(4, 4), entries = number(directory, 2);
    for (std::size_t i = 0; i < entries; ++i)
        if (const std::size_t entry = directory + 2 + 12 * i; number(entry, 2) == 0x0112) return int(number(entry + 8, 2));
    return 1;
}

// Turn an image by its EXIF orientation, 1 to 8. From 5 on, rows and columns are swapped.
Image upright(const Image& image, int orientation) {
    if (orientation < 2 || orientation > 8) return image;
    const bool swapped = orientation >= 5;
    const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Image result(swapped ? image.height : image.width, swapped ? image.width : image.height);
    for (int y = 0; y < result.height; ++y)
        for (int x = 0; x < result.width; ++x) {
            int source_x = swapped ? y : x, source_y = swapped ? x : y;
            if (flip_x) source_x = image.width - 1 - source_x;
            if (flip_y) source_y = image.height - 1 - source_y;
            std::memcpy(result.at(x, y), image.at(source_x, source_y), 3);
        }
    return result;
}

// Find the orientation in the APP1 segments of a JPEG file.
int jpeg_orientation(const jpeg_decompress_struct& info) {
    bool elsewhere = false;
    for (const jpeg_marker_struct* marker = info.marker_list; marker; marker = marker->next) {
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0)
            if (const int found = exif_orientation(marker->data + 6, marker->data_length - 6); found != 1) return found;
        elsewhere = elsewhere || contains(marker->data, marker->data_length, "tiff:Orientation");
    }
    if (elsewhere) refuse("the orientation in XMP metadata is not supported. Save the image upright.");
    return 1;
}

// State of libjpeg. Its error handler must not return, and an exception must not pass through its C code: it jumps.
struct JpegDecoder {
    jpeg_decompress_struct info{};
    jpeg_error_mgr errors{};
    std::jmp_buf failed;
    char reason[JMSG_LENGTH_MAX] = "";

    JpegDecoder() {
        info.err = jpeg_std_error(&errors);
        info.client_data = this;
        errors.error_exit = fail;
        // A warning means damaged data, which libjpeg would replace by gray.
        errors.emit_message = [](j_common_ptr common, int level) {
            if (level < 0) fail(common);
        };
    }
    ~JpegDecoder() { jpeg_destroy_decompress(&info); }

    static void fail(j_common_ptr common) {
        JpegDecoder& decoder = *static_cast<JpegDecoder*>(common->client_data);
        common->err->format_message(common, decoder.reason);
        std::longjmp(decoder.failed, 1);
    }
};

// The two functions that jump hold no object with a destructor.
bool read_header(JpegDecoder& decoder, const Bytes& data) {
    if (setjmp(decoder.failed)) return false;
    jpeg_create_decompress(&decoder.info);
    jpeg_mem_src(&decoder.info, data.data(), data.size());
    jpeg_save_markers(&decoder.info, JPEG_APP0 + 1, 0xFFFF);
    return jpeg_read_header(&decoder.info, TRUE) == JPEG_HEADER_OK;
}

bool read_pixels(JpegDecoder& decoder, Image& image) {
    if (setjmp(decoder.failed)) return false;
    decoder.info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&decoder.info);
    while (decoder.info.output_scanline < decoder.info.output_height) {
        JSAMPROW row = image.at(0, int(decoder.info.output_scanline));
        jpeg_read_scanlines(&decoder.info, &row, 1);
    }
    return jpeg_finish_decompress(&decoder.info);
}

Image load_jpeg(const Bytes& data) {
    JpegDecoder decoder;
    if (!read_header(decoder, data)) refuse(std::string("the JPEG file cannot be decoded: ") + decoder.reason + ".");
    check_size(decoder.info.image_width, decoder.info.image_height);
    if (decoder.info.num_components == 4) refuse("CMYK is not supported. Convert the image to RGB.");
    // Before the pixels are read: the end of decoding frees the metadata.
    const int orientation = jpeg_orientation(decoder.info);
    Image image(int(decoder.info.image_width), int(decoder.info.image_height));
    if (!read_pixels(decoder, image)) refuse(std::string("the JPEG file cannot be decoded: ") + decoder.reason + ".");
    return upright(image, orientation);
}

Image load_png(const Bytes& data) {
    const int size = int(data.size());
    int width, height, channels;
    if (!stbi_info_from_memory(data.data(), size, &width, &height, &channels)) refuse("the PNG file cannot be decoded.");
    check_size(width, height);
    if (stbi_is_16_bit_from_memory(data.data(), size)) refuse("16 bits per channel are not supported. Save the image with 8 bits.");
    if (contains(data.data(), data.size(), "eXIf") || contains(data.data(), data.size(), "tiff:Orientation"))
        refuse("EXIF and XMP metadata in PNG files are not supported. Save the image upright and without metadata.");
    std::uint8_t* decoded = stbi_load_from_memory(data.data(), size, &width, &height, &channels, 4);
    if (!decoded) refuse(std::string("the PNG file cannot be decoded: ") + stbi_failure_reason() + ".");
    Image image(width, height);
    for (std::size_t i = 0; i < image.pixels.size(); ++i) {
        // Transparent pixels are composited over white, with Pillow's rounding.
        const std::uint8_t* pixel = decoded + i / 3 * 4;
        const int blend = pixel[i % 3] * pixel[3] + 255 * (255 - pixel[3]) + 128;
        image.pixels[i] = std::uint8_t(((blend >> 8) + blend) >> 8);
    }
    stbi_image_free(decoded);
    return image;
}

}  // namespace

Image load_image(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const Bytes data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    try {
        if (!file) refuse("the file cannot be read.");
        if (data.size() > 2 && data[0] == 0xFF && data[1] == 0xD8) return load_jpeg(data);
        if (data.size() > 8 && std::memcmp(data.data(), "\x89PNG\r\n\x1a\n", 8) == 0) return load_png(data);
        refuse("not a JPEG or PNG file.");
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(path + ": " + error.what());
    }
}
