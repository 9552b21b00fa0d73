# The test profile in TARGET, which configs/test-<code>/profile.mk says: a little text, some dialogues and questions of its own, and neither
# tasks nor preferences, which a new language does not have.
include configs/test/profile.mk
SOURCES := builtin-$(TARGET) builtin-en
INSTRUCT := builtin-instruct-$(TARGET)
PREFERENCES :=
PROMPTS := data/builtin/languages/$(TARGET).prompts.jsonl
$(foreach stage,dedup annotate filter init pack cpt merge reward sft,$(eval CONF-$(stage) := configs/test/$(stage).yaml))
$(foreach stage,tokenizer instruct eval,$(eval CONF-$(stage) := configs/test/languages/$(stage).yaml))
