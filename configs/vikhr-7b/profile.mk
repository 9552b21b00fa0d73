# The paper: Mistral-7B, its corpora and instructions from the hub, its numbers (Tables 3 and 5).
BASE := mistral-7b
include configs/vikhr-7b/data.mk
# Section 3.4: eight A100 with 80 GB.
GPUS ?= 8
# Disk: 150 GB of text and its stages, 60 of weights, twice 100 of a checkpoint with optimiser states, and what is being written.
NEEDS = --gpus=$(GPUS) --gpu_gb=80 --disk_gb=600 --hub=mistralai/Mistral-7B-v0.1
