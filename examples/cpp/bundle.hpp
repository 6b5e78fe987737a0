// Bundle: the parts of manifest.json that a program for classification needs.
#pragma once

#include <string>
#include <vector>

#include "image.hpp"

struct Bundle {
    PreprocessSpec spec;
    std::vector<std::string> labels;  // in the order of the outputs
    double temperature = 1;           // divisor of the logits before the softmax
    double reject_below = 0;          // an image with a lower score is unknown
};

// One model file of a bundle.
struct Variant {
    std::string path;    // .xml (OpenVINO) or .onnx
    std::string input;   // name of the input tensor: uint8 [batch, height, width, 3], RGB
    std::string output;  // name of the output tensor: float32 [batch, labels], logits
};

// Read the manifest of the bundle in `folder`. Throws std::runtime_error for a bundle that this program cannot run.
Bundle read_bundle(const std::string& folder);

// Return the variant called `name`, such as openvino-int8. Throws std::runtime_error if the bundle has no such variant.
Variant find_variant(const std::string& folder, const std::string& name);
