#include "bundle.hpp"

#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace {

nlohmann::json read_manifest(const std::string& folder) {
    std::ifstream file(folder + "/manifest.json");
    if (!file) throw std::runtime_error(folder + " has no manifest.json. Give the folder that `edgetl export` wrote.");
    nlohmann::json manifest = nlohmann::json::parse(file);
    if (manifest.at("schema_version") != 1) throw std::runtime_error("this program reads manifests of schema_version 1 only.");
    return manifest;
}

}  // namespace

Bundle read_bundle(const std::string& folder) {
    const nlohmann::json manifest = read_manifest(folder);
    if (manifest.at("task") != "classification") throw std::runtime_error("this program supports the task classification only.");
    const nlohmann::json& spec = manifest.at("preprocess");
    const nlohmann::json& rule = manifest.at("decision_rule");  // bundles of early versions have no temperature
    return {{spec.at("input_size").at(0), spec.at("input_size").at(1), spec.at("crop_mode"), spec.at("crop_pct"),
             spec.at("interpolation"), spec.at("resize"), spec.at("mean")},
            manifest.at("labels"), rule.value("temperature", 1.0), rule.value("reject_below", 0.0)};
}

Variant find_variant(const std::string& folder, const std::string& name) {
    const nlohmann::json manifest = read_manifest(folder);
    for (const nlohmann::json& variant : manifest.at("variants")) {
        if (variant.at("name") != name) continue;
        if (variant.at("input_form") != "uint8")
            throw std::runtime_error(name + " takes float32 tensors. Export the bundle with `--input uint8`.");
        // An OpenVINO variant has two files. OpenVINO finds the .bin file next to the .xml file.
        for (const nlohmann::json& file : variant.at("files")) {
            const std::string path = file.at("path");
            if (path.compare(path.size() - 4, 4, ".bin") != 0) return {folder + "/" + path, variant.at("input"), variant.at("output")};
        }
    }
    throw std::runtime_error("the bundle has no variant " + name + ". List its variants: edgetl inspect " + folder);
}
