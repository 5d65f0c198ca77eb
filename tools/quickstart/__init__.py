"""Text and tasks for tools/quickstart.sh, made from documentation on the machine."""
