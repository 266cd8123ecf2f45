"""What is said of a file that another library could not read."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 200 characters, or its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]
