"""Three drafters of SmolLM2-135M-Instruct as data: the folders `small`, `medium` and `large`. multispin loads them."""
