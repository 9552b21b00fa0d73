# The test profile in Belarusian.
TARGET := be
include configs/test/languages/language.mk
