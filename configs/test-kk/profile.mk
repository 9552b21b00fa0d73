# The test profile in Kazakh.
TARGET := kk
include configs/test/languages/language.mk
