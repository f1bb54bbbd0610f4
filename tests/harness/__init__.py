"""What tests share: configurations, worlds of processes, training, commands."""
