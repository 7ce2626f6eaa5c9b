"""transformers' own tests of multimodal models, three times: plain, compiled with schedule ``none``, and skipping."""
