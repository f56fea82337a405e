"""One environment, source, decoder, prior, encoder, head, method and metric that are not spirl-ray's own."""
