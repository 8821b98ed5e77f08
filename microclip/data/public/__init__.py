"""Public datasets: downloaded, unpacked, verified and split."""
