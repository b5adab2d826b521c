"""The stages of making EmojiWorld."""
