"""What answers: one module an engine, each behind contracts.Engine and each with its heavy imports inside.

python -c "from medbench.harness.engines.openai import OpenAIEngine"
"""
