"""Where things are kept: the spelling of URIs, filesystems, staging and swap, checkpoint files."""
