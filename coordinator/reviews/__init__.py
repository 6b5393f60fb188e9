"""Reviews: a model trained on patients who withdrew waits until a privacy officer has decided, with a ground."""
