# The paper's recipe on LLaMA-2-7B, whose weights the hub gives after its terms are accepted (HF_TOKEN).
BASE := llama2-7b
include configs/vikhr-7b/data.mk
GPUS ?= 8
# Disk: as vikhr-7b.
NEEDS = --gpus=$(GPUS) --gpu_gb=80 --disk_gb=600 --hub=meta-llama/Llama-2-7b-hf
# Nothing in the settings depends on the base: every stage takes vikhr-7b's.
$(foreach stage,dedup annotate filter tokenizer init pack cpt merge translate reward instruct sft eval report estimate,$(eval CONF-$(stage) := configs/vikhr-7b/$(stage).yaml))
