"""Pretraining, supervised fine-tuning and reward models: thin layers over the HF and TRL trainers."""
