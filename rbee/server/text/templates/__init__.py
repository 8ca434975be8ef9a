"""What chat templates are, and what they take: the parts of `rbee.server.text.chat_template`."""
