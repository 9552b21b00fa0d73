# The paper's recipe on Llama-3-8B, whose weights the hub gives after its terms are accepted (HF_TOKEN).
BASE := llama3-8b
include configs/vikhr-7b/data.mk
GPUS ?= 8
# Disk: as vikhr-7b. With 40,000 rows for its 128,256 the model has 7.3 billion parameters, vikhr-7b's number.
NEEDS = --gpus=$(GPUS) --gpu_gb=80 --disk_gb=600 --hub=meta-llama/Meta-Llama-3-8B
# Nothing in the settings depends on the base: every stage takes vikhr-7b's.
$(foreach stage,dedup annotate filter tokenizer init pack cpt merge translate reward instruct sft eval report estimate,$(eval CONF-$(stage) := configs/vikhr-7b/$(stage).yaml))
