#!/bin/sh
# What follows the image's name is a command of dlrrec, unless it is a program that a launcher starts: TorchX on
# Docker keeps an image's entry point before its own bash or python. (`command -v` would not tell: dlrrec's `split`
# is also a program of the system.)
case ${1:-} in
  bash | sh | python | torchrun | ray | dlrrec) exec "$@" ;;
  *) exec dlrrec "$@" ;;
esac
