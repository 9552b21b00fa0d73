# The paper's recipe on Mistral-Nemo-12B, the base of its authors' best public model.
BASE := nemo-12b
include configs/vikhr-7b/data.mk
GPUS ?= 8
# Disk: as vikhr-7b, with 23 GB for a model and twice 160 for a checkpoint with optimiser states.
NEEDS = --gpus=$(GPUS) --gpu_gb=80 --disk_gb=800 --hub=mistralai/Mistral-Nemo-Base-2407
# Training alone needs other settings (ZeRO-3).
$(foreach stage,dedup annotate filter tokenizer init pack merge translate reward instruct eval report estimate,$(eval CONF-$(stage) := configs/vikhr-7b/$(stage).yaml))
