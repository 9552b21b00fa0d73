# The test profile in Serbian.
TARGET := sr
include configs/test/languages/language.mk
