// Classify images with a bundle that was exported with `edgetl export --input uint8`.
//
//     classify BUNDLE VARIANT IMAGE...
//
// Prints one line per image: path, label (or "unknown") and score (0..1), separated by tabs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <openvino/openvino.hpp>

#include "bundle.hpp"

namespace {

ov::CompiledModel compile(ov::Core& core, const Variant& variant) {
    // Without the precision hint OpenVINO computes in bfloat16 on CPUs that have it, and scores differ from those of the export.
    return core.compile_model(variant.path, "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                              ov::hint::inference_precision(ov::element::f32));
}

// Return the score of the class `best`: softmax of the logits, divided by the temperature.
double score(const float* logits, std::size_t count, std::size_t best, double temperature) {
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += std::exp((double(logits[i]) - logits[best]) / temperature);
    return 1 / sum;
}

void classify(const std::string& folder, const std::string& variant_name, char** paths) {
    const Bundle bundle = read_bundle(folder);
    const Variant variant = find_variant(folder, variant_name);
    ov::Core core;
    ov::CompiledModel model = compile(core, variant);
    ov::InferRequest request = model.create_infer_request();
    for (; *paths; ++paths) {
        Image pixels = to_pixels(load_image(*paths), bundle.spec);
        const ov::Shape shape{1, std::size_t(pixels.height), std::size_t(pixels.width), 3};
        request.set_tensor(variant.input, ov::Tensor(ov::element::u8, shape, pixels.pixels.data()));
        request.infer();
        const ov::Tensor output = request.get_tensor(variant.output);
        if (output.get_size() != bundle.labels.size()) throw std::runtime_error("the model has not one output per label.");
        const float* logits = output.data<float>();
        const std::size_t best = std::max_element(logits, logits + output.get_size()) - logits;
        const double highest = score(logits, output.get_size(), best, bundle.temperature);
        const char* label = highest < bundle.reject_below ? "unknown" : bundle.labels[best].c_str();
        std::printf("%s\t%s\t%.6f\n", *paths, label, highest);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 4) {
        std::fprintf(stderr, "usage: classify BUNDLE VARIANT IMAGE...\n");
        return 2;
    }
    try {
        classify(arguments[1], arguments[2], arguments + 3);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "classify: %s\n", error.what());
        return 1;
    }
}
