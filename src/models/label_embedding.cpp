#include "src/models/label_embedding.h"

#include "src/models/json_fields.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {

LabelEmbeddingConfig LabelEmbeddingConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  LabelEmbeddingConfig c;
  fields.get("num_classes", c.num_classes);
  fields.get("dim", c.dim);
  c.validate(where);
  return c;
}

Json LabelEmbeddingConfig::to_json() const {
  Json json;
  json["_class_name"] = "LabelEmbedding";
  json["num_classes"] = num_classes;
  json["dim"] = dim;
  return json;
}

void LabelEmbeddingConfig::validate(std::string_view where) const {
  if (num_classes < 1 || dim < 1) fail<ConfigError>("{}: num_classes ({}) and dim ({}) must be at least 1", where, num_classes, dim);
}

LabelEmbedding::LabelEmbedding(const LabelEmbeddingConfig& config)
    : config_((config.validate("LabelEmbedding"), config)), embedding_(config.num_classes, config.dim) {
  child("embedding", embedding_);
}

Tensor LabelEmbedding::operator()(const Tensor& labels) const {
  expect_shape(labels, {-1}, "LabelEmbedding: labels");
  return embedding_(labels).unsqueeze(1);
}

}  // namespace fewstep::models
