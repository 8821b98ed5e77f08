"""The network side: image tokens, saliency, attention pooling and the fusion of both."""
