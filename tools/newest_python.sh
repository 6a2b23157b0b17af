#!/bin/sh
# Prints the newest Python from 3.12 on that is found here, on the path or under pyenv; nothing where there is none.
for minor in 15 14 13 12; do
  for python in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python3; do
    if "$python" -c "" 2>/dev/null; then echo "$python"; exit 0; fi
  done
done
