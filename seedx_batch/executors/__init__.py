"""Ways to start workers; each worker is one `seedx-batch worker` process."""
